//! Times of PyTorch on whole models: prefill, and the start of a process.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparq_measure::shape::CacheType;

use super::{BaselineRow, times};

/// Times of the prefill of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillBaseline {
    /// The model and the length.
    #[serde(flatten)]
    pub key: PrefillKey,
    /// The fastest prefill, in microseconds.
    pub best_us: f64,
    /// The prefill with each attention kernel, in microseconds.
    pub times_us: BTreeMap<String, f64>,
}

/// The model and the length of a prefill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefillKey {
    /// The name of the model.
    pub model: String,
    /// Its number of layers.
    pub layers: usize,
    /// The element type.
    pub dtype: CacheType,
    /// S: number of tokens of the prompt.
    #[serde(rename = "S")]
    pub seq_len: usize,
}

impl BaselineRow for PrefillBaseline {
    type Key = PrefillKey;

    const SCRIPT: &'static str = "prefill_baseline.py";

    fn key(&self) -> Self::Key {
        self.key.clone()
    }

    fn name(key: &Self::Key) -> String {
        let (model, layers, dtype) = (&key.model, key.layers, key.dtype.name());
        format!("{model} layers={layers} {dtype} S={}", key.seq_len)
    }

    fn best_us(&self) -> f64 {
        self.best_us
    }

    fn parse(row: &Map<String, Value>) -> Result<Option<Self>> {
        let key = key_of(row)?;
        let times_us = times(row, "_ms", 1e3);
        let best = times_us.values().copied().min_by(f64::total_cmp);
        Ok(best.map(|best_us| Self {
            key,
            best_us,
            times_us,
        }))
    }
}

/// Times of the start of a process with transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartBaseline {
    /// The model and the prompt.
    #[serde(flatten)]
    pub key: StartKey,
    /// The phases of the fastest process, in microseconds.
    pub times_us: BTreeMap<String, f64>,
}

/// The model and the prompt of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartKey {
    /// The name of the model's folder.
    pub model: String,
    /// The element type.
    pub dtype: CacheType,
    /// The number of tokens of the prompt.
    pub prompt_tokens: usize,
}

impl StartBaseline {
    /// The name of the time to the first token.
    const FIRST_TOKEN: &'static str = "first_token";
}

impl BaselineRow for StartBaseline {
    type Key = StartKey;

    const SCRIPT: &'static str = "start_baseline.py";

    fn key(&self) -> Self::Key {
        self.key.clone()
    }

    fn name(key: &Self::Key) -> String {
        format!(
            "{} {}, {} tokens",
            key.model,
            key.dtype.name(),
            key.prompt_tokens
        )
    }

    fn best_us(&self) -> f64 {
        self.times_us
            .get(Self::FIRST_TOKEN)
            .copied()
            .unwrap_or(f64::NAN)
    }

    fn parse(row: &Map<String, Value>) -> Result<Option<Self>> {
        let times_us = times(row, "_ms", 1e3);
        let key = key_of(row)?;
        let row = Self { key, times_us };
        Ok(Some(row).filter(|row| row.times_us.contains_key(Self::FIRST_TOKEN)))
    }
}

/// The key of a row, of which it has the entries.
fn key_of<K: DeserializeOwned>(row: &Map<String, Value>) -> Result<K> {
    Ok(serde_json::from_value(Value::Object(row.clone()))?)
}

#[cfg(test)]
mod tests {
    use super::super::Baselines;
    use super::*;

    #[test]
    fn baselines_of_prefill_have_the_fastest_kernel() {
        let text = r#"{"torch": "2.11", "matmul_TFLOPS": 700.5, "rows": [
            {"model": "llama3-8b", "layers": 32, "dtype": "bf16", "S": 8192, "flash_ms": 243.0,
             "cudnn_ms": 224.0},
            {"model": "llama3-8b", "layers": 32, "dtype": "bf16", "S": 131072,
             "flash_err": "out of memory"}]}"#;
        let found = Baselines::<PrefillBaseline>::parse(text).unwrap();
        assert_eq!((found.rows.len(), found.matmul_tflops), (1, Some(700.5)));
        let key = |layers| PrefillKey {
            model: "llama3-8b".into(),
            layers,
            dtype: CacheType::Bf16,
            seq_len: 8192,
        };
        assert_eq!(found.best_us(&key(32)), Some(224e3));
        assert_eq!(found.best_us(&key(4)), None);
        let error = found.matching(&[key(4)]).unwrap_err().to_string();
        assert!(
            error.contains("layers=4") && error.contains("layers=32"),
            "{error}"
        );
    }

    #[test]
    fn baselines_of_starts_name_wrong_rows() {
        let row = r#"{"model": "m", "dtype": "bf16", "prompt_tokens": 4096, "load_ms": 5000.0"#;
        let parse = |text: &str| Baselines::<StartBaseline>::parse(text);
        let found = parse(&format!(
            "{{\"rows\": [{row}, \"first_token_ms\": 9000.0}}, {row}}}]}}"
        ));
        let found = found.unwrap();
        assert_eq!(
            found.rows.len(),
            1,
            "a row without a first token is dropped"
        );
        assert_eq!(found.best_us(&found.rows[0].key()), Some(9e6));
        let error = format!("{:#}", parse(r#"{"rows": [{"model": "m"}]}"#).unwrap_err());
        assert!(
            error.contains("row 0") && error.contains("dtype"),
            "{error}"
        );
    }
}
