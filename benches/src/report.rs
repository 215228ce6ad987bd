//! The JSON files of the benchmarks. Their fields are the schema: times in microseconds, bandwidths
//! in GB/s (10^9 bytes), sizes in bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sparq_measure::attention::Run;
use sparq_measure::host::Host;
use sparq_measure::linear;
use sparq_measure::model::DeviceRun;
use sparq_measure::prefill::PrefillRun;
use sparq_measure::program::ProgramRun;

use crate::baselines::{
    AttentionBaseline, Baselines, PrefillBaseline, ProgramBaseline, StartBaseline, StepBaseline,
};
use crate::presets::Preset;
use crate::provenance;
use crate::start::StartRun;

/// The version of the schema that this build writes and reads.
pub const SCHEMA: u64 = 1;

/// The benchmark that wrote a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bench {
    /// Attention on one device, in one run.
    Op,
    /// Attention on every device of a build and machine, with a run for each.
    Backends,
    /// Whole decode steps of models on one device.
    E2e,
    /// The linear layers of a decode step on one device.
    Linear,
    /// The prefill of one model on one device.
    Prefill,
    /// The start of fresh processes with one model.
    Start,
    /// Prompts and decode steps of one checkpoint on one device.
    Program,
}

/// The first fields of every report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// [`SCHEMA`].
    pub schema: u64,
    /// The benchmark.
    pub bench: Bench,
    /// The start of the run in UTC: `2026-01-31T23:59:59Z`.
    pub date: String,
    /// The measured commit, followed by `+changes` if tracked files differed from it.
    pub commit: Option<String>,
    /// The command.
    pub command: String,
    /// The machine.
    pub machine: Host,
}

impl Head {
    /// The head of a report that begins now, on this machine.
    pub fn now(bench: Bench, command: String, commit: Option<String>) -> Self {
        Self {
            schema: SCHEMA,
            bench,
            date: provenance::now(),
            commit: commit.or_else(provenance::commit),
            command,
            machine: Host::this(),
        }
    }
}

/// A report on attention: `sparq-bench op` and `backends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Date, machine and command.
    #[serde(flatten)]
    pub head: Head,
    /// The preset of shapes and settings. The command names the replacements.
    pub preset: Preset,
    /// The results of each device.
    pub runs: Vec<Run>,
    /// Times of PyTorch on shapes of this report.
    #[serde(rename = "peers")]
    pub baselines: Option<Baselines<AttentionBaseline>>,
}

/// A report on whole decode steps: `sparq-bench e2e`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct E2eReport {
    /// Date, machine and command.
    #[serde(flatten)]
    pub head: Head,
    /// The results.
    pub run: DeviceRun,
    /// Times of PyTorch on runs of this report.
    #[serde(rename = "peers")]
    pub baselines: Option<Baselines<StepBaseline>>,
}

/// A report on linear layers: `sparq-bench linear`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearReport {
    /// Date, machine and command.
    #[serde(flatten)]
    pub head: Head,
    /// The results.
    pub run: linear::Run,
}

/// A report on prefill: `sparq-bench prefill`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillReport {
    /// Date, machine and command.
    #[serde(flatten)]
    pub head: Head,
    /// The results.
    pub run: PrefillRun,
    /// Times of PyTorch on prompts of this report.
    #[serde(rename = "peers")]
    pub baselines: Option<Baselines<PrefillBaseline>>,
}

/// A report on the start of processes: `sparq-bench start`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartReport {
    /// Date, machine and command.
    #[serde(flatten)]
    pub head: Head,
    /// The results.
    pub run: StartRun,
    /// Times of transformers.
    #[serde(rename = "peers")]
    pub baselines: Option<Baselines<StartBaseline>>,
}

/// A report on a checkpoint in the program: `sparq-bench program`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// Date, machine and command.
    #[serde(flatten)]
    pub head: Head,
    /// The results.
    pub run: ProgramRun,
    /// Times of llama.cpp on the same file.
    #[serde(rename = "peers")]
    pub baselines: Option<Baselines<ProgramBaseline>>,
}

/// Reads a report of the given kind.
///
/// # Errors
/// If the file cannot be read or is not such a report. The message names the expectation and the
/// finding.
pub fn read<R: DeserializeOwned>(path: &Path) -> Result<R> {
    serde_json::from_value(read_value(path)?).with_context(|| path.display().to_string())
}

/// Reads the benchmark that wrote a report.
///
/// # Errors
/// If the file cannot be read or is not a report.
pub fn bench(path: &Path) -> Result<Bench> {
    /// The field of [`Head`].
    #[derive(Deserialize)]
    struct Kind {
        bench: Bench,
    }
    let kind: Kind = read(path)?;
    Ok(kind.bench)
}

/// Reads a report of any benchmark as JSON and checks its schema.
fn read_value(path: &Path) -> Result<Value> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| name.to_string())?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{name}: expected JSON"))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(SCHEMA) => Ok(value),
        Some(other) => {
            bail!("{name}: expected a report of schema {SCHEMA}, found schema {other}")
        }
        None => bail!(
            "{name}: expected a report of sparq-bench, an object with \"schema\": {SCHEMA}, \
             found no schema"
        ),
    }
}

/// The JSON file of a report.
///
/// # Errors
/// If a number cannot be represented in JSON.
pub fn to_json(report: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(report).context("the report as JSON")?;
    text.push(b'\n');
    Ok(text)
}
