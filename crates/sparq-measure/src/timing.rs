//! Samples the time of a call: launched one by one, or replayed from a captured graph.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::{Device, capture};
use serde::{Deserialize, Serialize};

pub use crate::calls::{Calls, Kept};
use crate::stats::Summary;

/// How calls reach the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Call by call. The time of the launches counts.
    Eager,
    /// Captured once and replayed, as a model replays its decode step.
    Captured,
}

impl Mode {
    /// The name in JSON files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Eager => "eager",
            Mode::Captured => "captured",
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time for the samples of one row, in seconds. Long samples may exceed it.
    pub seconds: f64,
    /// The least number of samples.
    pub min_samples: usize,
    /// The largest number of samples.
    pub max_samples: usize,
    /// A sample is the mean over as many calls as fill this time, in seconds. This hides the cost
    /// of waiting for the device at its end.
    pub sample_seconds: f64,
}

impl Pace {
    /// For figures to keep.
    pub const STEADY: Pace = Pace {
        seconds: 1.0,
        min_samples: 7,
        max_samples: 100,
        sample_seconds: 5e-3,
    };
    /// For figures to keep on GPUs, whose times vary little.
    pub const BRIEF: Pace = Pace {
        seconds: 0.2,
        ..Pace::STEADY
    };
    /// To check that everything runs.
    pub const QUICK: Pace = Pace {
        seconds: 0.02,
        min_samples: 3,
        max_samples: 20,
        sample_seconds: 5e-4,
    };
}

/// The least number of calls in a captured graph: with fewer, the launch of the graph would count.
const CALLS_PER_GRAPH: usize = 16;

/// Times calls one by one, rotating through the buffer sets.
///
/// # Errors
/// If the device fails.
pub fn eager(device: &Device, calls: &Calls, sets: usize, pace: &Pace) -> Result<Summary> {
    let mut next = 0;
    let mut call = || {
        let out = calls(next);
        next = (next + 1) % sets;
        out
    };
    sample(pace, 1, |repeats| {
        // A lazy backend may skip work whose result is dropped before it runs.
        let mut last = None;
        for _ in 0..repeats {
            last = Some(call());
        }
        wait(device)?;
        drop(last);
        Ok(())
    })
}

/// Times replays of a captured graph that calls on every buffer set. Also returns whether the
/// device captured a hardware graph; otherwise each replay repeats the calls.
///
/// # Errors
/// If the device fails.
pub fn captured(
    device: &Device,
    calls: &Calls,
    sets: usize,
    pace: &Pace,
) -> Result<(Summary, bool)> {
    let count = sets * CALLS_PER_GRAPH.div_ceil(sets);
    wait(device)?;
    let mut graph = capture(device, || {
        let mut last = None;
        for call in 0..count {
            last = Some(calls(call % sets));
        }
        last
    });
    wait(device)?;
    let hardware = graph.is_hardware();
    let summary = sample(pace, count, |repeats| {
        for _ in 0..repeats {
            // SAFETY: `calls` owns the buffers of every call and outlives the graph. Nothing else
            // runs on the device between the replays, and the wait below ends before the output
            // is dropped.
            unsafe {
                graph.replay();
            }
        }
        wait(device)
    })?;
    Ok((summary, hardware))
}

/// Samples `run(repeats)`, where each repeat makes `calls` calls.
pub(crate) fn sample(
    pace: &Pace,
    calls: usize,
    mut run: impl FnMut(usize) -> Result<()>,
) -> Result<Summary> {
    let mut timed = |repeats: usize| -> Result<f64> {
        let start = Instant::now();
        run(repeats)?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first call compiles and autotunes kernels.
    timed(1)?;
    let mut repeats = 1;
    loop {
        let seconds = timed(repeats)?;
        if seconds >= pace.sample_seconds {
            break;
        }
        let factor = (pace.sample_seconds / seconds.max(1e-9)).ceil();
        repeats *= (factor as usize).clamp(2, 10);
    }
    let start = Instant::now();
    let limit = Duration::from_secs_f64(pace.seconds);
    let mut seconds = Vec::new();
    while seconds.len() < pace.min_samples
        || (seconds.len() < pace.max_samples && start.elapsed() < limit)
    {
        seconds.push(timed(repeats)? / (repeats * calls) as f64);
    }
    Summary::of(seconds, repeats * calls).context("expected at least one sample, found none")
}

/// Waits until the device has finished all work.
pub(crate) fn wait(device: &Device) -> Result<()> {
    device
        .sync()
        .map_err(|error| anyhow::anyhow!("the device failed: {error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_averages_short_calls() {
        let pace = Pace {
            seconds: 0.0,
            min_samples: 3,
            max_samples: 5,
            sample_seconds: 2e-3,
        };
        let summary = sample(&pace, 2, |repeats| {
            std::thread::sleep(Duration::from_micros(100 * repeats as u64));
            Ok(())
        })
        .unwrap();
        assert_eq!(summary.samples, 3);
        assert!(summary.calls_per_sample >= 4 && summary.median_us >= 50.0);
    }

    #[test]
    fn timing_takes_long_calls_one_by_one() {
        let summary = sample(&Pace::QUICK, 1, |repeats| {
            std::thread::sleep(Duration::from_millis(2 * repeats as u64));
            Ok(())
        })
        .unwrap();
        assert_eq!(summary.calls_per_sample, 1);
    }
}
