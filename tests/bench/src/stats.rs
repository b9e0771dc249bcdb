//! Medians, quantiles, and what several rounds of one figure come to.

use crate::report::Results;

/// The middle of the values; of an even number, the mean of the two in the middle. NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values.to_vec());
    let half = sorted.len() / 2;
    let upper = sorted.get(half).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        return upper;
    }
    let lower = half.checked_sub(1).and_then(|index| sorted.get(index));
    lower.map_or(f64::NAN, |lower| f64::midpoint(*lower, upper))
}

/// The least of the sorted values that `share` of them do not exceed. NaN of none.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into what fits in memory"
    )]
    let index = (count_of(sorted.len()) * share).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// In ascending order.
pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Counts here stay far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn count_of(count: usize) -> f64 {
    count as f64
}

/// The values of several rounds, by figure and system.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Sampled>);

#[derive(Debug)]
struct Sampled {
    figure: String,
    system: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

impl Samples {
    /// One more value of a figure.
    pub(crate) fn add(&mut self, figure: &str, system: &'static str, value: f64, unit: &'static str) {
        let known = self
            .0
            .iter_mut()
            .find(|one| one.figure == figure && one.system == system);
        match known {
            Some(known) => known.values.push(value),
            None => self.0.push(Sampled {
                figure: figure.to_owned(),
                system,
                unit,
                values: vec![value],
            }),
        }
    }

    /// The value that was added last.
    pub(crate) fn newest(&self, figure: &str, system: &str) -> Option<f64> {
        let known = self
            .0
            .iter()
            .find(|one| one.figure == figure && one.system == system);
        known?.values.last().copied()
    }

    /// Takes out what was said of a system that failed half-way.
    pub(crate) fn forget(&mut self, system: &str) {
        self.0.retain(|one| one.system != system);
    }

    /// Each figure's median becomes a result.
    pub(crate) fn conclude(self, results: &mut Results) {
        for one in self.0 {
            eprintln!("{} {}: {:.2?} {}", one.system, one.figure, one.values, one.unit);
            results.add(&one.figure, one.system, median(&one.values), one.unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_both_middles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_quantile_is_the_least_value_that_its_share_does_not_exceed() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.5), 50.0);
        assert_eq!(quantile(&hundred, 0.99), 99.0);
        assert_eq!(quantile(&hundred, 1.0), 100.0);
        assert_eq!(quantile(&[7.0], 0.0), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn rounds_come_to_their_median_and_a_failed_system_to_nothing() {
        let mut samples = Samples::default();
        for value in [1.0, 9.0, 2.0] {
            samples.add("rtt", "iap", value, "µs");
            samples.add("rtt", "lame", value, "µs");
        }
        assert_eq!(samples.newest("rtt", "iap"), Some(2.0));
        samples.forget("lame");
        assert_eq!(samples.newest("rtt", "lame"), None);
        let mut results = Results::default();
        samples.conclude(&mut results);
        assert_eq!(results.value("rtt", "iap"), Some(2.0));
        assert_eq!(results.value("rtt", "lame"), None);
    }
}
