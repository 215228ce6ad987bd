//! Rates of llama.cpp on a checkpoint.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::BaselineRow;

/// The time of one token of a prompt or of one decode step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramBaseline {
    /// The prompt or the steps.
    #[serde(flatten)]
    pub key: ProgramKey,
    /// The fastest time of a token, in microseconds.
    pub best_us: f64,
    /// The time of a token with each setting, in microseconds.
    pub times_us: BTreeMap<String, f64>,
}

/// A prompt or decode steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "test", rename_all = "snake_case")]
pub enum ProgramKey {
    /// A prompt.
    Prompt {
        /// Its length.
        tokens: usize,
    },
    /// Decode steps.
    Decode {
        /// Positions in the cache before the steps.
        depth: usize,
    },
}

impl BaselineRow for ProgramBaseline {
    type Key = ProgramKey;

    const SCRIPT: &'static str = "llama_cpp_baseline.py";

    fn key(&self) -> Self::Key {
        self.key
    }

    fn name(key: &Self::Key) -> String {
        match key {
            ProgramKey::Prompt { tokens } => format!("prompt of {tokens}"),
            ProgramKey::Decode { depth } => format!("decode at {depth}"),
        }
    }

    fn best_us(&self) -> f64 {
        self.best_us
    }

    fn parse(row: &Map<String, Value>) -> Result<Option<Self>> {
        let key = serde_json::from_value(Value::Object(row.clone()));
        let key =
            key.context("expected \"test\": \"prompt\" with tokens or \"decode\" with depth")?;
        let rate = |(name, value): (&String, &Value)| {
            let setting = name.strip_suffix("_tokens_per_s")?.to_owned();
            let rate = value.as_f64().filter(|&rate| rate > 0.0)?;
            Some((setting, 1e6 / rate))
        };
        let times_us: BTreeMap<String, f64> = row.iter().filter_map(rate).collect();
        let best = times_us.values().copied().min_by(f64::total_cmp);
        Ok(best.map(|best_us| Self {
            key,
            best_us,
            times_us,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Baselines;
    use super::*;

    #[test]
    fn baselines_of_llama_cpp_have_the_fastest_setting() {
        let text = r#"{"llama_cpp": "b1", "rows": [
            {"test": "prompt", "tokens": 2048, "plain_tokens_per_s": 400.0,
             "flash_tokens_per_s": 500.0},
            {"test": "decode", "depth": 0, "plain_tokens_per_s": 100.0},
            {"test": "decode", "depth": 64}]}"#;
        let found = Baselines::<ProgramBaseline>::parse(text).unwrap();
        assert_eq!(
            (found.rows.len(), found.llama_cpp.as_deref()),
            (2, Some("b1"))
        );
        assert_eq!(
            found.best_us(&ProgramKey::Prompt { tokens: 2048 }),
            Some(2000.0)
        );
        assert_eq!(
            found.best_us(&ProgramKey::Decode { depth: 0 }),
            Some(10_000.0)
        );
        assert_eq!(found.best_us(&ProgramKey::Decode { depth: 64 }), None);
        let wrong = Baselines::<ProgramBaseline>::parse(r#"{"rows": [{"test": "pp"}]}"#);
        let error = format!("{:#}", wrong.unwrap_err());
        assert!(
            error.contains("row 0") && error.contains("depth"),
            "{error}"
        );
    }
}
