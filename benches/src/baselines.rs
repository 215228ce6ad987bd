//! Times of PyTorch and of llama.cpp on the same machine, from the scripts in `benches/baselines`.

mod program;
mod whole_models;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparq_measure::model::RunShape;
use sparq_measure::shape::{CacheType, Shape};

pub use program::{ProgramBaseline, ProgramKey};
pub use whole_models::{PrefillBaseline, PrefillKey, StartBaseline, StartKey};

/// The output of a script, reduced to the rows of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baselines<R> {
    /// Name of the device.
    pub device: Option<String>,
    /// Version of PyTorch.
    pub torch: Option<String>,
    /// Version of llama.cpp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llama_cpp: Option<String>,
    /// The copy bandwidth that the script measured, in GB/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_gb_per_s: Option<f64>,
    /// The rate of a large product that the script measured, in 10^12 operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matmul_tflops: Option<f64>,
    /// One row per key.
    pub rows: Vec<R>,
}

/// Times of PyTorch on one shape or run.
pub trait BaselineRow: Sized {
    /// Identifies the shape or run.
    type Key: Clone + PartialEq;

    /// The script that prints these rows.
    const SCRIPT: &'static str;

    /// The key of this row.
    fn key(&self) -> Self::Key;

    /// The name of a key in error messages.
    fn name(key: &Self::Key) -> String;

    /// The fastest dense time in microseconds.
    fn best_us(&self) -> f64;

    /// Parses a row. `None` if it has no time or does not concern this program.
    ///
    /// # Errors
    /// If a key of the JSON object is missing or has the wrong type.
    fn parse(row: &Map<String, Value>) -> Result<Option<Self>>;
}

/// Times of dense attention on one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionBaseline {
    /// The shape.
    pub shape: Shape,
    /// The element type of K and V.
    pub dtype: CacheType,
    /// The fastest dense attention, in microseconds.
    pub best_dense_us: f64,
    /// All times of the script by its names, in microseconds.
    pub times_us: BTreeMap<String, f64>,
}

/// Times of whole decode steps of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepBaseline {
    /// The run.
    pub run: RunShape,
    /// The fastest step, in microseconds.
    pub best_us: f64,
    /// The step with each attention kernel, in microseconds.
    pub times_us: BTreeMap<String, f64>,
}

impl<R: BaselineRow> Baselines<R> {
    /// Reads the output of a script and keeps the rows with one of these keys.
    ///
    /// # Errors
    /// If the file cannot be read, is not the output of the script, or has none of the keys.
    pub fn read(path: &Path, keys: &[R::Key]) -> Result<Self> {
        let named = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(named)?;
        Self::parse(&text)
            .and_then(|baselines| baselines.matching(keys))
            .with_context(named)
    }

    /// Reads the output of a script with all its rows.
    ///
    /// # Errors
    /// If the file cannot be read or is not the output of the script.
    pub fn read_all(path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(named)?;
        Self::parse(&text).with_context(named)
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("expected JSON")?;
        let Some(rows) = value.get("rows").and_then(Value::as_array) else {
            let found: Vec<&str> = value
                .as_object()
                .map(|object| object.keys().map(String::as_str).collect())
                .unwrap_or_default();
            bail!(
                "expected the output of benches/baselines/{}, an object with a list \"rows\", \
                 found the keys {found:?}",
                R::SCRIPT
            );
        };
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let rows: Result<Vec<Option<R>>> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| {
                row.as_object()
                    .context("expected an object")
                    .and_then(R::parse)
                    .with_context(|| format!("row {index}"))
            })
            .collect();
        Ok(Self {
            device: text("device"),
            torch: text("torch"),
            llama_cpp: text("llama_cpp"),
            copy_gb_per_s: value.get("copy_GBps").and_then(Value::as_f64),
            matmul_tflops: value.get("matmul_TFLOPS").and_then(Value::as_f64),
            rows: rows?.into_iter().flatten().collect(),
        })
    }

    fn matching(mut self, keys: &[R::Key]) -> Result<Self> {
        let names = |keys: &mut dyn Iterator<Item = R::Key>| {
            let names: Vec<String> = keys.map(|key| R::name(&key)).collect();
            match names.is_empty() {
                true => "no row with a time".into(),
                false => names.join("; "),
            }
        };
        let found = names(&mut self.rows.iter().map(R::key));
        self.rows.retain(|row| keys.contains(&row.key()));
        if self.rows.is_empty() {
            let expected = names(&mut keys.iter().take(1).cloned());
            bail!("expected at least one row of this run, such as {expected}; found {found}");
        }
        Ok(self)
    }

    /// The row with this key.
    pub fn find(&self, key: &R::Key) -> Option<&R> {
        self.rows.iter().find(|row| row.key() == *key)
    }

    /// The fastest dense time for a key, in microseconds.
    pub fn best_us(&self, key: &R::Key) -> Option<f64> {
        self.find(key).map(R::best_us)
    }
}

impl BaselineRow for AttentionBaseline {
    type Key = (Shape, CacheType);

    const SCRIPT: &'static str = "dense_baselines.py";

    fn key(&self) -> Self::Key {
        (self.shape, self.dtype)
    }

    fn name((shape, dtype): &Self::Key) -> String {
        format!("{shape} {}", dtype.name())
    }

    fn best_us(&self) -> f64 {
        self.best_dense_us
    }

    fn parse(row: &Map<String, Value>) -> Result<Option<Self>> {
        let size = |key: &str| {
            let found = row.get(key);
            found
                .and_then(Value::as_u64)
                .map(|size| size as usize)
                .with_context(|| format!("expected a whole number {key:?}, found {found:?}"))
        };
        let shape = Shape::new(size("B")?, size("H")?, size("Hkv")?, size("d")?, size("S")?);
        let dtype = match row.get("dtype") {
            // The script for GPUs measures fp16 only and prints no dtype.
            None => CacheType::F16,
            Some(name) => serde_json::from_value(name.clone())
                .with_context(|| format!("expected a dtype f32, f16 or bf16, found {name}"))?,
        };
        let times_us = times(row, "_us", 1.0);
        let is_dense = |name: &str| !name.starts_with("sparq") && !name.starts_with("torch_topk");
        let best = times_us
            .iter()
            .filter(|(name, time)| is_dense(name) && **time > 0.0)
            .map(|(_, &time)| time)
            .min_by(f64::total_cmp);
        Ok(best.map(|best_dense_us| Self {
            shape,
            dtype,
            best_dense_us,
            times_us,
        }))
    }
}

impl BaselineRow for StepBaseline {
    type Key = RunShape;

    const SCRIPT: &'static str = "e2e_baseline.py";

    fn key(&self) -> Self::Key {
        self.run
    }

    fn name(run: &Self::Key) -> String {
        run.to_string()
    }

    fn best_us(&self) -> f64 {
        self.best_us
    }

    fn parse(row: &Map<String, Value>) -> Result<Option<Self>> {
        let size = |key: &str| row.get(key)?.as_u64().map(|size| size as usize);
        let run = || {
            Some(RunShape {
                // A model that this program does not know is skipped.
                model: serde_json::from_value(row.get("model")?.clone()).ok()?,
                batch: size("B")?,
                seq_len: size("S")?,
            })
        };
        let times_us = times(row, "_ms_per_step", 1e3);
        let best = times_us.values().copied().min_by(f64::total_cmp);
        Ok(run().zip(best).map(|(run, best_us)| Self {
            run,
            best_us,
            times_us,
        }))
    }
}

/// The times of a row: the keys with this suffix, without it, and their values in microseconds.
fn times(row: &Map<String, Value>, suffix: &str, us: f64) -> BTreeMap<String, f64> {
    row.iter()
        .filter_map(|(key, value)| {
            Some((key.strip_suffix(suffix)?.to_owned(), us * value.as_f64()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::Preset;

    const ATTENTION: &str = r#"{"device": "a GPU", "torch": "2.11", "copy_GBps": 3020.5, "rows": [
        {"B": 1, "H": 32, "Hkv": 8, "d": 128, "S": 4096, "kv_bytes": 16777216, "flash_us": 25.0,
         "cudnn_err": "no engine", "flash_folded_us": 19.3, "sparq_torch_r32_k128_us": 540.0,
         "torch_topk128_us": 3.3, "best_dense_us": 19.3, "best_dense_GBps": 871.0},
        {"B": 1, "H": 8, "Hkv": 8, "d": 128, "S": 4096, "dtype": "f32", "sdpa_us": 900.0},
        {"B": 1, "H": 9, "Hkv": 9, "d": 128, "S": 4096, "flash_err": "out of memory"}]}"#;

    const STEPS: &str = r#"{"device": "a GPU", "torch": "2.11", "rows": [
        {"model": "llama3-8b", "B": 1, "S": 4096, "weights_bytes": 1, "flash_ms_per_step": 6.9,
         "cudnn_ms_per_step": 6.73},
        {"model": "llama3-8b", "B": 1, "S": 32768, "flash_err": "out of memory"},
        {"model": "gpt-2", "B": 1, "S": 1024, "flash_ms_per_step": 1.0}]}"#;

    fn attention(text: &str) -> Result<Baselines<AttentionBaseline>> {
        Baselines::parse(text)
    }

    fn keys(preset: Preset) -> Vec<(Shape, CacheType)> {
        let cases = preset.grid().cases().unwrap();
        cases.iter().map(|case| (case.shape, case.dtype)).collect()
    }

    #[test]
    fn baselines_match_by_shape_and_type() {
        let found = attention(ATTENTION).unwrap();
        let shape = Shape::new(1, 32, 8, 128, 4096);
        let row = found.find(&(shape, CacheType::F16)).unwrap();
        assert_eq!(row.best_dense_us, 19.3);
        assert_eq!(row.times_us["sparq_torch_r32_k128"], 540.0);
        assert!(found.find(&(shape, CacheType::F32)).is_none());
        assert_eq!(found.rows.len(), 2, "a row without a time is dropped");

        let field = found.matching(&keys(Preset::Field)).unwrap();
        assert_eq!((field.rows.len(), field.rows[0].shape), (1, shape));
    }

    #[test]
    fn baselines_without_a_matching_shape_fail() {
        let found = attention(ATTENTION).unwrap();
        let error = found.matching(&keys(Preset::Quick)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("B=1 H=4/4 d=64 S=512 f32")
                && error.contains("B=1 H=32/8 d=128 S=4096 f16"),
            "{error}"
        );
    }

    #[test]
    fn baselines_of_another_form_fail() {
        let error = |text: &str| format!("{:#}", attention(text).unwrap_err());
        assert!(error("{\"runs\": []}").contains("found the keys [\"runs\"]"));
        assert!(error("[").contains("expected JSON"));
        let row = error("{\"rows\": [{\"B\": 1, \"H\": \"x\"}]}");
        assert!(row.contains("row 0") && row.contains("\"H\""), "{row}");
        let row = error("{\"rows\": [7]}");
        assert!(row.contains("expected an object"), "{row}");
    }

    #[test]
    fn baselines_find_the_fastest_step() {
        let found = Baselines::<StepBaseline>::parse(STEPS).unwrap();
        let found = found.matching(&RunShape::ALL).unwrap();
        assert_eq!(
            (found.rows.len(), found.torch.as_deref()),
            (1, Some("2.11"))
        );
        let row = found.find(&RunShape::ALL[0]).unwrap();
        assert!((row.best_us - 6730.0).abs() < 1e-9 && row.times_us.len() == 2);
        assert!(found.find(&RunShape::ALL[1]).is_none());
    }

    #[test]
    fn baselines_without_a_matching_run_fail() {
        let tiny = ["tiny,1,64".parse().unwrap()];
        let found = Baselines::<StepBaseline>::parse(STEPS).unwrap();
        let error = found.matching(&tiny).unwrap_err().to_string();
        assert!(
            error.contains("tiny B=1 S=64") && error.contains("llama3-8b B=1 S=4096"),
            "{error}"
        );
        let error = Baselines::<StepBaseline>::parse("{}").unwrap_err();
        assert!(error.to_string().contains("e2e_baseline.py"), "{error}");
    }
}
