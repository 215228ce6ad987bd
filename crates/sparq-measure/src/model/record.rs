//! The measured rows of whole decode steps. Their fields are part of the schema of the JSON
//! reports: times in microseconds, sizes in bytes.

use serde::{Deserialize, Serialize};
use sparq::{SparqConfig, Transfers};

use super::Setup;
use super::name::RunShape;
use crate::attention::{MethodName, sparq_label};
use crate::bandwidth::Bandwidth;
use crate::shape::CacheType;
use crate::stats::Summary;

/// The results of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceRun {
    /// Name of the device on the command line.
    pub device: String,
    /// Name of the GPU, as reported by the driver.
    pub gpu: Option<String>,
    /// The memory bandwidth, measured just before the rows.
    pub bandwidth: Bandwidth,
    /// The rows, in the order of the runs.
    pub rows: Vec<StepRow>,
}

/// One method on one model, B and S.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Model, B and S. During the measurement of a row, the caches grow by some positions.
    pub run: RunShape,
    /// The element type of activations, K and V, and of weights that are not packed.
    pub dtype: CacheType,
    /// The format of packed weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The method.
    pub method: MethodName,
    /// SparQ's settings, if the method is SparQ.
    pub settings: Option<SparqConfig>,
    /// Bytes of the weights a step has to read.
    pub weight_bytes: f64,
    /// Bytes of the caches a step has to move, counted by [`Transfers`].
    pub cache_bytes: f64,
    /// Both divided by the bandwidth.
    pub floor_us: f64,
    /// Eager steps, each on the token of the step before.
    pub eager: Option<Summary>,
    /// Captured steps, on GPUs.
    pub captured: Option<Captured>,
    /// Parts of a step, timed separately; captured on GPUs. `None` with packed weights.
    pub parts: Option<Parts>,
    /// Passes that verify drafts of this method, if they were to be timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verifications: Vec<Verification>,
    /// The reason why the row was not measured.
    pub skipped: Option<String>,
}

/// The time of captured steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// Time of one step.
    pub time: Summary,
    /// True if the device captured a graph, false if each replay repeats the calls.
    pub hardware_graph: bool,
}

/// A dense pass over the tokens of a draft and the one before them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// The tokens of each sequence.
    pub rows: usize,
    /// Time of the pass, captured where the device can, and of taking its positions back.
    pub time: Summary,
}

/// Lossless decoding with drafts of one length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lossless {
    /// The tokens of a draft.
    pub drafted: usize,
    /// The mean number of tokens that a draft and its verification give.
    pub tokens: f64,
    /// Microseconds per token of each sequence.
    pub token_us: f64,
}

/// Times of the parts of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// Attention of all layers, without projections and without appending to the caches.
    pub attention: Summary,
    /// Products with all matrices.
    pub linears: Summary,
}

impl StepRow {
    /// A row of this run without measurements.
    pub(super) fn new(
        run: RunShape,
        setup: &Setup,
        settings: Option<SparqConfig>,
        bandwidth: &Bandwidth,
    ) -> Self {
        let dtype = setup.dtype;
        let cache = run.cache(dtype);
        let len = run.attended();
        let (method, transfers) = match &settings {
            None => (MethodName::Dense, Transfers::dense(&cache, len)),
            Some(config) => (MethodName::Sparq, Transfers::sparq(&cache, len, config)),
        };
        let weight_bytes = setup.weight_bytes(run.model);
        Self {
            run,
            dtype,
            weights: setup.weights.map(|format| format.to_string()),
            method,
            settings,
            weight_bytes,
            cache_bytes: transfers.bytes(),
            floor_us: bandwidth.floor_us(weight_bytes + transfers.bytes()),
            eager: None,
            captured: None,
            parts: None,
            verifications: Vec::new(),
            skipped: None,
        }
    }

    /// Returns lossless decoding with drafts by this method, if each drafted token is accepted with
    /// probability `acceptance`: at the timed length of drafts that takes the least time.
    pub fn lossless(&self, acceptance: f64) -> Option<Lossless> {
        let step_us = self.step_us()?;
        let of = |verification: &Verification| {
            let drafted = verification.rows - 1;
            let tokens: f64 = (0..=drafted).map(|n| acceptance.powi(n as i32)).sum();
            let us = drafted as f64 * step_us + verification.time.median_us;
            Lossless {
                drafted,
                tokens,
                token_us: us / tokens,
            }
        };
        let all = self.verifications.iter().map(of);
        all.min_by(|a, b| a.token_us.total_cmp(&b.token_us))
    }

    /// Median time of a step in microseconds: captured if a graph was captured, otherwise eager.
    pub fn step_us(&self) -> Option<f64> {
        let eager = self.eager.map(|time| time.median_us);
        self.captured_us().or(eager)
    }

    /// Median time of captured steps, if a graph was captured.
    pub fn captured_us(&self) -> Option<f64> {
        self.captured
            .filter(|captured| captured.hardware_graph)
            .map(|captured| captured.time.median_us)
    }

    /// The time of a step minus its parts: norms, elementwise operations, RoPE, appending to the
    /// caches, token selection.
    pub fn rest_us(&self) -> Option<f64> {
        let parts = self.parts?;
        Some(self.step_us()? - parts.attention.median_us - parts.linears.median_us)
    }

    /// The time of an eager step minus that of a captured one: launches the device waits for.
    pub fn launches_us(&self) -> Option<f64> {
        Some(self.eager?.median_us - self.captured_us()?)
    }

    /// The method with its settings.
    pub fn label(&self) -> String {
        match &self.settings {
            None => "dense".into(),
            Some(settings) => sparq_label(settings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of dense attention without measurements.
    fn empty_row() -> StepRow {
        let bandwidth = Bandwidth {
            copy_gb_per_s: 1000.0,
            read_gb_per_s: None,
            buffer_bytes: 1,
        };
        let run: RunShape = "tiny,1,64".parse().unwrap();
        let device = sparq_device::available()[0].clone();
        let setup = Setup {
            memory: crate::memory::DeviceMemory::estimate(&device, None, None, true),
            device,
            pace: crate::timing::Pace::BRIEF,
            dtype: CacheType::F16,
            weights: None,
            settings: Vec::new(),
            verified_rows: Vec::new(),
        };
        StepRow::new(run, &setup, None, &bandwidth)
    }

    #[test]
    fn lossless_takes_the_best_length_of_a_draft() {
        let mut row = empty_row();
        row.eager = Some(Summary::single(10.0));
        assert_eq!(row.lossless(0.5), None);
        row.verifications = [2, 4]
            .map(|rows| Verification {
                rows,
                time: Summary::single(100.0),
            })
            .to_vec();
        let found = row.lossless(1.0).unwrap();
        assert_eq!(
            (found.drafted, found.tokens, found.token_us),
            (3, 4.0, 32.5)
        );
        // 110 us for 1.1 tokens, or 130 us for 1.111.
        let found = row.lossless(0.1).unwrap();
        assert_eq!((found.drafted, found.token_us), (1, 100.0));
    }

    #[test]
    fn step_row_splits_time_into_parts_and_rest() {
        let mut row = empty_row();
        assert_eq!((row.step_us(), row.rest_us()), (None, None));
        row.eager = Some(Summary::single(100.0));
        row.parts = Some(Parts {
            attention: Summary::single(20.0),
            linears: Summary::single(30.0),
        });
        assert_eq!((row.rest_us(), row.launches_us()), (Some(50.0), None));
        row.captured = Some(Captured {
            time: Summary::single(60.0),
            hardware_graph: true,
        });
        assert_eq!((row.rest_us(), row.launches_us()), (Some(10.0), Some(40.0)));
    }
}
