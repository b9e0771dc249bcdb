//! A system under measurement: where its clients connect, and the processes of its path.

use crate::process::{Running, cpu_seconds, family};

/// One hop of a path.
#[derive(Debug)]
pub(crate) struct Hop {
    pub(crate) role: &'static str,
    pub(crate) pid: u32,
    /// Held when the harness started it itself.
    pub(crate) running: Option<Running>,
}

/// A path from a local port to the backend.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) hops: Vec<Hop>,
}

/// CPU seconds by hop at one moment.
#[derive(Clone, Debug)]
pub(crate) struct CpuReading(Vec<(&'static str, f64)>);

impl System {
    pub(crate) fn read_cpu(&self) -> anyhow::Result<CpuReading> {
        let mut readings = Vec::new();
        for hop in &self.hops {
            let mut used = 0.0;
            for pid in family(hop.pid) {
                used += cpu_seconds(pid)?;
            }
            readings.push((hop.role, used));
        }
        Ok(CpuReading(readings))
    }

    /// Ends what the harness started, client side first.
    pub(crate) fn end(self) {
        for hop in self.hops.into_iter().rev() {
            if let Some(running) = hop.running {
                running.end();
            }
        }
    }
}

impl CpuReading {
    /// Seconds the whole path used since `earlier`.
    pub(crate) fn path_since(&self, earlier: &Self) -> f64 {
        self.0
            .iter()
            .zip(&earlier.0)
            .map(|((_, now), (_, then))| now - then)
            .sum()
    }

    /// Seconds the hop in the middle used since `earlier`.
    pub(crate) fn proxy_since(&self, earlier: &Self) -> f64 {
        let middle = self
            .0
            .iter()
            .zip(&earlier.0)
            .filter(|((role, _), _)| *role == "proxy");
        middle.map(|((_, now), (_, then))| now - then).sum()
    }
}
