//! Figures of another framework, from the scripts in `benches/peers`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::preset::Case;
use crate::shape::{CacheType, Shape};

/// What a peer's script measured, as far as shapes match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// The device that the script names.
    pub device: Option<String>,
    /// The version of PyTorch.
    pub torch: Option<String>,
    /// Its copy bandwidth.
    pub copy_gb_per_s: Option<f64>,
    /// A row for each shape.
    pub rows: Vec<PeerRow>,
}

/// A peer's figures for one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRow {
    /// The shape.
    pub shape: Shape,
    /// The type of K and V.
    pub dtype: CacheType,
    /// Its fastest dense attention.
    pub best_dense_us: f64,
    /// Everything that the script timed, by its names.
    pub times_us: BTreeMap<String, f64>,
}

impl Peers {
    /// Reads the output of a script of `benches/peers`, such as dense_baselines.py.
    ///
    /// # Errors
    /// When the file is not there or does not have the scripts' form; the message names what was expected and found.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("expected JSON")?;
        let Some(rows) = value.get("rows").and_then(Value::as_array) else {
            let found: Vec<&str> = value
                .as_object()
                .map(|object| object.keys().map(String::as_str).collect())
                .unwrap_or_default();
            bail!(
                "expected the output of benches/peers/dense_baselines.py, an object with a list \"rows\", found the keys {found:?}"
            );
        };
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let rows: Result<Vec<Option<PeerRow>>> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| {
                let row = row.as_object();
                row.context("expected an object")
                    .and_then(PeerRow::parse)
                    .with_context(|| format!("row {index}"))
            })
            .collect();
        Ok(Self {
            device: text("device"),
            torch: text("torch"),
            copy_gb_per_s: value.get("copy_GBps").and_then(Value::as_f64),
            rows: rows?.into_iter().flatten().collect(),
        })
    }

    /// The figures for a shape.
    pub fn find(&self, shape: &Shape, dtype: CacheType) -> Option<&PeerRow> {
        self.rows
            .iter()
            .find(|row| row.shape == *shape && row.dtype == dtype)
    }

    /// What matches the cases.
    ///
    /// # Errors
    /// When nothing does: then it is most likely the wrong file.
    pub fn matching(mut self, cases: &[Case]) -> Result<Self> {
        let found: Vec<String> = self
            .rows
            .iter()
            .map(|row| format!("{} {}", row.shape, row.dtype.name()))
            .collect();
        let wanted = |row: &PeerRow| {
            cases
                .iter()
                .any(|case| case.shape == row.shape && case.dtype == row.dtype)
        };
        self.rows.retain(wanted);
        if self.rows.is_empty() {
            let expected = cases.first().map_or(String::new(), |case| {
                format!(", such as {} {}", case.shape, case.dtype.name())
            });
            bail!(
                "expected at least one row with a shape of this run{expected}; found {}",
                match found.is_empty() {
                    true => "none with a time".into(),
                    false => found.join("; "),
                }
            );
        }
        Ok(self)
    }
}

impl PeerRow {
    /// A row, or `None` if nothing in it could be timed.
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
            // The script for GPUs measures fp16 alone and doesn't say so.
            None => CacheType::F16,
            Some(name) => serde_json::from_value(name.clone())
                .with_context(|| format!("expected a dtype f32, f16 or bf16, found {name}"))?,
        };
        let times_us: BTreeMap<String, f64> = row
            .iter()
            .filter_map(|(key, value)| Some((key.strip_suffix("_us")?.to_owned(), value.as_f64()?)))
            .collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset::Preset;

    const OUTPUT: &str = r#"{"device": "a GPU", "torch": "2.11", "copy_GBps": 3020.5, "rows": [
        {"B": 1, "H": 32, "Hkv": 8, "d": 128, "S": 4096, "kv_bytes": 16777216, "flash_us": 25.0, "cudnn_err": "no engine",
         "flash_folded_us": 19.3, "sparq_torch_r32_k128_us": 540.0, "torch_topk128_us": 3.3, "best_dense_us": 19.3, "best_dense_GBps": 871.0},
        {"B": 1, "H": 8, "Hkv": 8, "d": 128, "S": 4096, "dtype": "f32", "sdpa_us": 900.0},
        {"B": 1, "H": 9, "Hkv": 9, "d": 128, "S": 4096, "flash_err": "out of memory"}]}"#;

    #[test]
    fn rows_match_by_shape_and_type() {
        let peers = Peers::parse(OUTPUT).unwrap();
        let shape = Shape::new(1, 32, 8, 128, 4096);
        let row = peers.find(&shape, CacheType::F16).unwrap();
        assert_eq!(row.best_dense_us, 19.3);
        assert_eq!(row.times_us["sparq_torch_r32_k128"], 540.0);
        assert!(peers.find(&shape, CacheType::F32).is_none());
        assert_eq!(peers.rows.len(), 2, "a row without a time is left out");

        let field = peers
            .matching(&Preset::Field.grid().cases().unwrap())
            .unwrap();
        assert_eq!((field.rows.len(), field.rows[0].shape), (1, shape));
    }

    #[test]
    fn a_file_without_a_matching_shape_is_refused() {
        let peers = Peers::parse(OUTPUT).unwrap();
        let cases = Preset::Quick.grid().cases().unwrap();
        let error = peers.matching(&cases).unwrap_err().to_string();
        assert!(
            error.contains("B=1 H=4/4 d=64 S=512 f32")
                && error.contains("B=1 H=32/8 d=128 S=4096 f16"),
            "{error}"
        );
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        let error = |text: &str| format!("{:#}", Peers::parse(text).unwrap_err());
        assert!(error("{\"runs\": []}").contains("found the keys [\"runs\"]"));
        assert!(error("[").contains("expected JSON"));
        let row = error("{\"rows\": [{\"B\": 1, \"H\": \"x\"}]}");
        assert!(row.contains("row 0") && row.contains("\"H\""), "{row}");
        let row = error("{\"rows\": [7]}");
        assert!(row.contains("expected an object"), "{row}");
    }
}
