//! The JSON file of `sparq-bench e2e`: the head of every report, and a row for each model, length and method. Times are in microseconds.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sparq::SparqConfig;

use super::model::{ModelShape, RunShape};
use super::peers::StepPeers;
use crate::bandwidth::Bandwidth;
use crate::contender::MethodName;
use crate::report::{self, Head, sketch_name};
use crate::shape::CacheType;
use crate::stats::Summary;

/// A file of results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct E2eReport {
    /// When, where and how.
    #[serde(flatten)]
    pub head: Head,
    /// What was measured.
    pub run: DeviceRun,
    /// Figures of another framework on shapes of this report.
    pub peers: Option<StepPeers>,
}

/// The results of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceRun {
    /// The device's name on the command line.
    pub device: String,
    /// The name that a GPU gives itself.
    pub gpu: Option<String>,
    /// The memory bandwidth, measured just before.
    pub bandwidth: Bandwidth,
    /// The rows, in the order of the runs.
    pub rows: Vec<StepRow>,
}

/// One method on one model and length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Model, B and S. While a row is measured, the caches grow by some positions.
    pub run: RunShape,
    /// The type of weights, K and V.
    pub dtype: CacheType,
    /// The method.
    pub method: MethodName,
    /// SparQ's settings, for SparQ.
    pub settings: Option<SparqConfig>,
    /// Bytes of the weights that a step has to read.
    pub weight_bytes: f64,
    /// Bytes of the caches that a step has to move, by the cost model.
    pub cache_bytes: f64,
    /// Both over the bandwidth.
    pub floor_us: f64,
    /// Steps call by call, each on the token of the one before.
    pub eager: Option<Summary>,
    /// Steps of one recording, on GPUs.
    pub captured: Option<Captured>,
    /// Parts of a step alone; captured on GPUs.
    pub parts: Option<Parts>,
    /// Why it was not measured.
    pub skipped: Option<String>,
}

/// The time of recorded steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// One step.
    pub time: Summary,
    /// Whether the device recorded a graph; otherwise each replay made the calls anew.
    pub hardware_graph: bool,
}

/// Parts of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// The attention of all layers, without projections and without appending to the caches.
    pub attention: Summary,
    /// The products with all matrices.
    pub linears: Summary,
}

impl DeviceRun {
    /// Whether it only shows that everything runs.
    pub fn is_tiny(&self) -> bool {
        self.rows
            .iter()
            .all(|row| row.run.model == ModelShape::Tiny)
    }
}

impl StepRow {
    /// Median of a step, captured where it was recorded, in microseconds.
    pub fn step_us(&self) -> Option<f64> {
        let eager = self.eager.map(|time| time.median_us);
        self.captured_us().or(eager)
    }

    /// Median of recorded steps, if a graph was recorded.
    pub fn captured_us(&self) -> Option<f64> {
        self.captured
            .filter(|captured| captured.hardware_graph)
            .map(|captured| captured.time.median_us)
    }

    /// What is left of a step beside the parts: norms, elementwise operations, rotation, appending to the caches, the choice of the token.
    pub fn rest_us(&self) -> Option<f64> {
        let parts = self.parts?;
        Some(self.step_us()? - parts.attention.median_us - parts.linears.median_us)
    }

    /// What call by call adds to a recorded step: launches that the device waits for.
    pub fn launches_us(&self) -> Option<f64> {
        Some(self.eager?.median_us - self.captured_us()?)
    }

    /// The method with its settings.
    pub fn label(&self) -> String {
        match &self.settings {
            None => "dense".into(),
            Some(settings) => format!(
                "SparQ {} r={} k={}",
                sketch_name(settings.sketch),
                settings.rank,
                settings.top_k
            ),
        }
    }
}

impl E2eReport {
    /// Reads a report.
    ///
    /// # Errors
    /// When the file is not there or is no such report; the message names what was expected and found.
    pub fn read(path: &Path) -> Result<Self> {
        let value = report::read_value(path)?;
        serde_json::from_value(value).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(median_us: f64) -> Summary {
        Summary {
            median_us,
            min_us: median_us,
            p10_us: median_us,
            p90_us: median_us,
            samples: 1,
            calls_per_sample: 1,
        }
    }

    #[test]
    fn a_step_is_its_parts_and_a_rest() {
        let bandwidth = Bandwidth {
            copy_gb_per_s: 1000.0,
            read_gb_per_s: None,
            buffer_bytes: 1,
        };
        let run: RunShape = "tiny,1,64".parse().unwrap();
        let mut row = run.row(CacheType::F16, None, &bandwidth);
        assert_eq!((row.step_us(), row.rest_us()), (None, None));
        row.eager = Some(summary(100.0));
        row.parts = Some(Parts {
            attention: summary(20.0),
            linears: summary(30.0),
        });
        assert_eq!((row.rest_us(), row.launches_us()), (Some(50.0), None));
        row.captured = Some(Captured {
            time: summary(60.0),
            hardware_graph: true,
        });
        assert_eq!((row.rest_us(), row.launches_us()), (Some(10.0), Some(40.0)));
    }
}
