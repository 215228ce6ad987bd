//! The JSON file of a run. Its fields are the schema: times in microseconds, bandwidths in GB/s (10^9 bytes), sizes in bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sparq::methods::{Components, GroupScore};
use sparq::{Sketch, SparqConfig};

use crate::bandwidth::Bandwidth;
use crate::contender::MethodName;
use crate::machine::Machine;
use crate::peers::Peers;
use crate::preset::Preset;
use crate::provenance;
use crate::shape::{CacheType, Shape};
use crate::stage::StageTime;
use crate::stats::Summary;
use crate::timing::Mode;

/// The version of the schema that this build writes and reads.
pub const SCHEMA: u64 = 1;

/// Which benchmark wrote a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bench {
    /// One device: one run.
    Op,
    /// Every device of a build and machine: a run for each.
    Backends,
    /// Whole decode steps of models on one device; see [`crate::e2e`].
    E2e,
}

/// What every file of results begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// [`SCHEMA`].
    pub schema: u64,
    /// Which benchmark.
    pub bench: Bench,
    /// When it began, in UTC: `2026-01-31T23:59:59Z`.
    pub date: String,
    /// The commit that was measured; `+changes` behind it where files differed.
    pub commit: Option<String>,
    /// The command.
    pub command: String,
    /// The machine.
    pub machine: Machine,
}

impl Head {
    /// For a benchmark that begins now, on this machine.
    pub fn now(bench: Bench, command: String, commit: Option<String>) -> Self {
        Self {
            schema: SCHEMA,
            bench,
            date: provenance::now(),
            commit: commit.or_else(provenance::commit),
            command,
            machine: Machine::this(),
        }
    }
}

/// A file of results of single operations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When, where and how.
    #[serde(flatten)]
    pub head: Head,
    /// The preset that shapes and settings were taken from; the command tells what replaced them.
    pub preset: Preset,
    /// What was measured, for each device.
    pub runs: Vec<Run>,
    /// Figures of another framework on shapes of this report.
    pub peers: Option<Peers>,
}

/// The results of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The device's name on the command line.
    pub device: String,
    /// The name that a GPU gives itself.
    pub gpu: Option<String>,
    /// The last-level cache that buffers rotate to pass by.
    pub cache_bytes: u64,
    /// The memory bandwidth, measured just before.
    pub bandwidth: Bandwidth,
    /// The rows, in the order of the cases.
    pub rows: Vec<Row>,
}

/// One method on one shape, in one mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The shape.
    pub shape: Shape,
    /// The type of K and V.
    pub dtype: CacheType,
    /// The method.
    pub method: MethodName,
    /// How calls reach the device.
    pub mode: Mode,
    /// SparQ's settings, for SparQ.
    pub settings: Option<SparqConfig>,
    /// Elements that have to be moved, by the cost model.
    pub elements: usize,
    /// Bytes that have to be moved, by the cost model.
    pub bytes: f64,
    /// What was measured; `None` where it could not run.
    pub measured: Option<Measured>,
    /// Why it was not measured.
    pub skipped: Option<String>,
    /// What each stage takes of a captured SparQ step, where steps can be ended after a stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageTime>,
}

/// The measurement of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Time of one call.
    pub time: Summary,
    /// The bytes that have to be moved over the median.
    pub gb_per_s: f64,
    /// That over [`Bandwidth::reference_gb_per_s`].
    pub share_of_bandwidth: f64,
    /// The median of dense attention of this project on the same shape and in the same mode over this median.
    pub speedup_over_dense: Option<f64>,
    /// Buffer sets that calls went through in turn.
    pub buffer_sets: usize,
    /// The bytes that have to be moved, over all buffer sets.
    pub working_set_bytes: f64,
    /// Whether that is more than the last-level cache can have kept.
    pub cold: bool,
    /// For captured calls, whether the device recorded a graph; otherwise each replay made the calls anew.
    pub hardware_graph: Option<bool>,
}

impl Row {
    /// The median, if there is one.
    pub fn median_us(&self) -> Option<f64> {
        self.measured
            .as_ref()
            .map(|measured| measured.time.median_us)
    }

    /// The method with what tells its settings apart: `SparQ 4bits r=32 k=128`.
    pub fn label(&self) -> String {
        match (self.method, &self.settings) {
            (MethodName::Dense, _) => "dense".into(),
            (MethodName::DenseBurn, _) => "dense (burn)".into(),
            (MethodName::Sparq, None) => "SparQ".into(),
            (MethodName::Sparq, Some(settings)) => self.sparq_label(settings, true),
        }
    }

    /// Whether it is SparQ whose groups agree as in the paper, which every shape has.
    pub fn is_default_sparq(&self) -> bool {
        self.method == MethodName::Sparq
            && (self.shape.group_size() == 1
                || self.settings.is_some_and(|settings| {
                    settings.group_score == GroupScore::Probabilities
                        && settings.components == Components::SumAbs
                }))
    }

    /// The label without r and k, which may follow S.
    pub fn family(&self) -> String {
        match &self.settings {
            Some(settings) => self.sparq_label(settings, false),
            None => self.label(),
        }
    }

    fn sparq_label(&self, settings: &SparqConfig, sizes: bool) -> String {
        let mut label = format!("SparQ {}", sketch_name(settings.sketch));
        if sizes {
            label += &format!(" r={} k={}", settings.rank, settings.top_k);
        }
        if self.shape.group_size() > 1 {
            if settings.group_score == GroupScore::Logits {
                label += " logits";
            }
            if settings.components == Components::AbsSum {
                label += " abs_sum";
            }
        }
        label
    }
}

/// The name of a sketch.
pub fn sketch_name(sketch: Sketch) -> &'static str {
    match sketch {
        Sketch::Full => "full",
        Sketch::Bits8 => "8bits",
        Sketch::Bits4 => "4bits",
    }
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// When the file is not there or is no report of this schema; the message names what was expected and found.
    pub fn read(path: &Path) -> Result<Self> {
        let value = read_value(path)?;
        serde_json::from_value(value).with_context(|| path.display().to_string())
    }
}

/// A report of any benchmark as JSON, of the schema that this build knows.
pub(crate) fn read_value(path: &Path) -> Result<Value> {
    let named = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(named)?;
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected JSON", path.display()))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(SCHEMA) => Ok(value),
        Some(other) => bail!(
            "{}: expected a report of schema {SCHEMA}, found schema {other}",
            named()
        ),
        None => bail!(
            "{}: expected a report of sparq-bench (an object with \"schema\": {SCHEMA}), found no schema",
            named()
        ),
    }
}

/// A report as it is written to a file.
///
/// # Errors
/// When a number can't be written in JSON.
pub fn to_json(report: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(report).context("the report as JSON")?;
    text.push(b'\n');
    Ok(text)
}
