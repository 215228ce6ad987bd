//! The figures of a machine that determine the time of a step: [`Machine`].

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sparq::SparqError;
use sparq::cost::{Gpu, REACHED, StepCosts};

/// The share of the maker's bandwidth at which products with one token read 16-bit weights on a
/// GPU. Measured on an H200: 15.0 GB in 3.92 ms and 13.2 GB in 3.76 ms, so 3830 and 3520 of
/// 4800 GB/s.
/// For another engine set [`Machine::weights_gb_per_s`].
pub const PRODUCTS_REACHED: f64 = 0.75;

/// The same for products with [`MANY_SEQUENCES`] tokens or more, for which matrix units multiply:
/// 13.2 GB in 4.41 ms with 16 tokens, so 3000 GB/s.
pub const MANY_PRODUCTS_REACHED: f64 = 0.62;

/// The scores that dense attention of this program computes per microsecond on a GPU with this many
/// 10^12 operations per second, one per query head and position. Measured on an H200 and an H100:
/// 4.19 million scores in 177 us, and 33.6 million in 1.47 ms.
const SCORES_PER_TFLOPS: f64 = 24.5e3 / 989.0;

/// The number of sequences from which matrix units multiply.
pub const MANY_SEQUENCES: usize = 5;

/// Microseconds of a layer besides attention and products in a captured step on a GPU. On an H200,
/// measured steps minus their attention and products leave 2 to 6.
const GPU_LAYER_US: f64 = 4.0;

/// A machine, or one of several equal GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Name of the machine.
    pub name: String,
    /// Memory for weights and caches, in 10^9 bytes.
    pub memory_gb: f64,
    /// Memory bandwidth in 10^9 bytes per second, for the roofline.
    pub gb_per_s: f64,
    /// Bandwidth at which the products of a step read weights, in 10^9 bytes per second.
    pub weights_gb_per_s: f64,
    /// The same for [`MANY_SEQUENCES`] sequences or more. `None` if it does not differ.
    #[serde(default)]
    pub many_weights_gb_per_s: Option<f64>,
    /// Arithmetic of products in 10^12 operations per second. `None` treats products as
    /// memory-bound at any batch.
    pub tflops: Option<f64>,
    /// Scores that dense attention computes per microsecond, one per query head and position. This
    /// is the limit where several heads share a KV head. `None` treats it as memory-bound.
    #[serde(default)]
    pub dense_scores_per_us: Option<f64>,
    /// Microseconds of a layer besides attention and products: norms, RoPE, writing to the cache,
    /// launches.
    pub layer_us: f64,
    /// The cost model of the attention of a layer.
    pub costs: StepCosts,
}

/// A machine that cannot be found, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Neither the name of a known GPU nor a file.
    #[error(
        "machine: expected a part of the name of a known GPU ({known}) or a file written by --save, \
         found {found:?}"
    )]
    Unknown {
        /// The given name.
        found: String,
        /// The names of the known GPUs.
        known: String,
    },
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a machine in JSON.
    #[error("{}: expected a machine in JSON", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A figure is out of range.
    #[error("machine {name}: {key}: expected {expected}, found {found}")]
    Value {
        /// Name of the machine.
        name: String,
        /// Key of the figure.
        key: &'static str,
        /// The expected range.
        expected: &'static str,
        /// The value.
        found: f64,
    },
    /// A figure of the cost model is out of range.
    #[error("machine {name}: costs")]
    Costs {
        /// Name of the machine.
        name: String,
        /// The figure and its expected range.
        source: SparqError,
    },
}

impl Machine {
    /// The figures of a known GPU that decodes with this program.
    pub fn gpu(gpu: &Gpu) -> Self {
        Self {
            name: gpu.name.to_owned(),
            memory_gb: gpu.memory_gb,
            gb_per_s: REACHED * gpu.gb_per_s,
            weights_gb_per_s: PRODUCTS_REACHED * gpu.gb_per_s,
            many_weights_gb_per_s: Some(MANY_PRODUCTS_REACHED * gpu.gb_per_s),
            tflops: Some(gpu.tflops),
            dense_scores_per_us: Some(SCORES_PER_TFLOPS * gpu.tflops),
            layer_us: GPU_LAYER_US,
            costs: StepCosts::gpu(REACHED * gpu.gb_per_s),
        }
    }

    /// Finds a machine: a GPU by a part of its name, or the file of a measured machine.
    ///
    /// ```
    /// use sparq_plan::Machine;
    ///
    /// assert_eq!(Machine::find("h100")?.memory_gb, 80.0);
    /// # Ok::<(), sparq_plan::MachineError>(())
    /// ```
    ///
    /// # Errors
    /// If it is neither, or if the file is not a valid machine.
    pub fn find(spec: &str) -> Result<Self, MachineError> {
        let path = Path::new(spec);
        if path.is_file() {
            return Self::read(path);
        }
        match Gpu::named(spec) {
            Some(gpu) => Ok(Self::gpu(gpu)),
            None => Err(MachineError::Unknown {
                found: spec.to_owned(),
                known: Gpu::ALL.map(|gpu| gpu.name).join(", "),
            }),
        }
    }

    /// Reads a measured machine from a file.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid machine.
    pub fn read(path: &Path) -> Result<Self, MachineError> {
        let text = fs::read_to_string(path).map_err(|source| MachineError::Read {
            path: path.into(),
            source,
        })?;
        let machine: Self = serde_json::from_str(&text).map_err(|source| MachineError::Parse {
            path: path.into(),
            source,
        })?;
        machine.validate()?;
        Ok(machine)
    }

    /// The bandwidth at which products for `batch` sequences read weights, in 10^9 bytes per
    /// second.
    pub fn weights_rate(&self, batch: usize) -> f64 {
        match self.many_weights_gb_per_s {
            Some(rate) if batch >= MANY_SEQUENCES => rate,
            _ => self.weights_gb_per_s,
        }
    }

    /// Checks that every figure is in range.
    ///
    /// # Errors
    /// [`MachineError`], naming the first figure out of range.
    pub fn validate(&self) -> Result<(), MachineError> {
        let many = self.many_weights_gb_per_s.unwrap_or(1.0);
        let positive = [
            ("memory_gb", self.memory_gb),
            ("gb_per_s", self.gb_per_s),
            ("weights_gb_per_s", self.weights_gb_per_s),
            ("many_weights_gb_per_s", many),
            ("tflops", self.tflops.unwrap_or(1.0)),
            (
                "dense_scores_per_us",
                self.dense_scores_per_us.unwrap_or(1.0),
            ),
        ];
        let out_of_range = |(_, value): &(_, f64)| !(value.is_finite() && *value > 0.0);
        let first = positive.into_iter().find(out_of_range);
        let first = first.map(|(key, found)| (key, "a number above 0", found));
        let negative = !(self.layer_us.is_finite() && self.layer_us >= 0.0);
        let layer = negative.then_some(("layer_us", "0 or more", self.layer_us));
        if let Some((key, expected, found)) = first.or(layer) {
            return Err(MachineError::Value {
                name: self.name.clone(),
                key,
                expected,
                found,
            });
        }
        self.costs.validate().map_err(|source| MachineError::Costs {
            name: self.name.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_found_by_name_or_file() {
        assert_eq!(Machine::find("a100").unwrap().name, "A100");
        let unknown = Machine::find("abacus").unwrap_err().to_string();
        assert!(unknown.contains("\"abacus\""), "{unknown}");
        assert!(unknown.contains("H100"), "{unknown}");

        let folder = std::env::temp_dir().join(format!("sparq-plan-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("machine.json");
        let machine = Machine {
            name: "mine".into(),
            tflops: None,
            ..Machine::find("L4").unwrap()
        };
        fs::write(&path, serde_json::to_string(&machine).unwrap()).unwrap();
        assert_eq!(Machine::find(path.to_str().unwrap()).unwrap(), machine);
        fs::write(&path, r#"{"name": "mine"}"#).unwrap();
        let error = Machine::read(&path).unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains("machine.json"), "{error}");
        assert!(why.contains("memory_gb"), "{why}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn machine_figures_out_of_range_are_named() {
        let mut machine = Machine::find("H100").unwrap();
        assert!(machine.validate().is_ok());
        machine.layer_us = -1.0;
        let error = machine.validate().unwrap_err().to_string();
        assert!(error.contains("layer_us"), "{error}");
        machine.weights_gb_per_s = 0.0;
        let error = machine.validate().unwrap_err().to_string();
        let expected = "machine H100: weights_gb_per_s: expected a number above 0, found 0";
        assert_eq!(error, expected);
    }
}
