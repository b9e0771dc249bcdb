//! Waiting longer after each failure, with jitter so that a fleet does not come back as one.

use std::time::Duration;

/// Doubling delays between `initial` and `max`; each one is drawn from the upper half of its step.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    step: Duration,
}

impl Backoff {
    /// Starts at `initial`; never waits longer than `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            step: initial.min(max),
        }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.max);
        let half = step / 2;
        half + half.mul_f64(random_fraction())
    }

    /// Waits before the next attempt.
    pub async fn wait(&mut self) {
        let delay = self.next_delay();
        tokio::time::sleep(delay).await;
    }

    /// To be called after a success: the next failure waits `initial` again.
    pub fn reset(&mut self) {
        self.step = self.initial.min(self.max);
    }
}

/// `period` moved by up to `percent` either way, for renewals that must not fall together.
pub fn jittered(period: Duration, percent: u32) -> Duration {
    let spread = f64::from(percent.min(100)) / 100.0;
    period.mul_f64(1.0 - spread + 2.0 * spread * random_fraction())
}

/// In [0, 1]. A generator that fails costs the jitter, not the wait.
fn random_fraction() -> f64 {
    let mut bytes = [0xff_u8; 4];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_stay_in_the_upper_half_of_their_step() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for step in [1, 2, 4, 5, 5] {
            let step = Duration::from_secs(step);
            let delay = backoff.next_delay();
            assert!(delay >= step / 2 && delay <= step, "{delay:?} for step {step:?}");
        }
    }

    #[test]
    fn a_reset_starts_again_at_the_initial_delay() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(64));
        for _ in 0..6 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_secs(1));
    }

    #[test]
    fn jitter_stays_within_its_percentage() {
        for _ in 0..100 {
            let period = jittered(Duration::from_secs(100), 10);
            assert!(
                period >= Duration::from_secs(90) && period <= Duration::from_secs(110),
                "{period:?}"
            );
        }
    }
}
