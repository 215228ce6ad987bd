//! Figures of PyTorch for whole steps, from `benches/peers/e2e_baseline.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::RunShape;

/// What the script measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepPeers {
    /// The device that the script names.
    pub device: Option<String>,
    /// The version of PyTorch.
    pub torch: Option<String>,
    /// A row for each run.
    pub rows: Vec<PeerStep>,
}

/// A peer's figures for one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStep {
    /// The run.
    pub run: RunShape,
    /// Its quickest step, in microseconds.
    pub best_us: f64,
    /// Steps with each of its kernels for attention, in microseconds.
    pub times_us: BTreeMap<String, f64>,
}

impl StepPeers {
    /// Reads the output of the script; keeps what is among `runs`.
    ///
    /// # Errors
    /// When the file is not there, does not have the script's form or has none of the runs.
    pub fn read(path: &Path, runs: &[RunShape]) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text, runs).with_context(|| path.display().to_string())
    }

    fn parse(text: &str, runs: &[RunShape]) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("expected JSON")?;
        let Some(rows) = value.get("rows").and_then(Value::as_array) else {
            bail!(
                "expected the output of benches/peers/e2e_baseline.py, an object with a list \"rows\""
            );
        };
        let found: Vec<PeerStep> = rows.iter().filter_map(PeerStep::parse).collect();
        let kept: Vec<PeerStep> = found
            .iter()
            .filter(|row| runs.contains(&row.run))
            .cloned()
            .collect();
        if kept.is_empty() {
            bail!(
                "expected at least one row with a model, B and S of this run; found {} rows with a time, none of them",
                found.len()
            );
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            device: text("device"),
            torch: text("torch"),
            rows: kept,
        })
    }

    /// The figures for a run.
    pub fn find(&self, run: &RunShape) -> Option<&PeerStep> {
        self.rows.iter().find(|row| row.run == *run)
    }
}

impl PeerStep {
    /// A row; `None` for a model that this program doesn't know, or without a time.
    fn parse(row: &Value) -> Option<Self> {
        let size = |key: &str| row.get(key)?.as_u64().map(|size| size as usize);
        let run = RunShape {
            model: serde_json::from_value(row.get("model")?.clone()).ok()?,
            batch: size("B")?,
            seq_len: size("S")?,
        };
        let times_us: BTreeMap<String, f64> = row
            .as_object()?
            .iter()
            .filter_map(|(key, value)| {
                let name = key.strip_suffix("_ms_per_step")?;
                Some((name.to_owned(), 1e3 * value.as_f64()?))
            })
            .collect();
        let best_us = times_us.values().copied().min_by(f64::total_cmp)?;
        Some(Self {
            run,
            best_us,
            times_us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"{"device": "a GPU", "torch": "2.11", "rows": [
        {"model": "llama3-8b", "B": 1, "S": 4096, "weights_bytes": 1, "flash_ms_per_step": 6.9, "cudnn_ms_per_step": 6.73},
        {"model": "llama3-8b", "B": 1, "S": 32768, "flash_err": "out of memory"},
        {"model": "gpt-2", "B": 1, "S": 1024, "flash_ms_per_step": 1.0}]}"#;

    #[test]
    fn the_quickest_step_of_a_run_is_found() {
        let peers = StepPeers::parse(OUTPUT, &RunShape::ALL).unwrap();
        assert_eq!(
            (peers.rows.len(), peers.torch.as_deref()),
            (1, Some("2.11"))
        );
        let row = peers.find(&RunShape::ALL[0]).unwrap();
        assert!((row.best_us - 6730.0).abs() < 1e-9 && row.times_us.len() == 2);
        assert!(peers.find(&RunShape::ALL[1]).is_none());
    }

    #[test]
    fn a_file_without_a_run_is_refused() {
        let tiny = ["tiny,1,64".parse().unwrap()];
        let error = StepPeers::parse(OUTPUT, &tiny).unwrap_err().to_string();
        assert!(error.contains("model, B and S"), "{error}");
        let error = StepPeers::parse("{}", &tiny).unwrap_err().to_string();
        assert!(error.contains("e2e_baseline.py"), "{error}");
    }
}
