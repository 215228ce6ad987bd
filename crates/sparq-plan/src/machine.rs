//! What of a machine decides the time of a step: [`Machine`].

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sparq::SparqError;
use sparq::cost::{Gpu, REACHED, StepCosts};

/// The share of a maker's bandwidth at which the products of one token read 16-bit weights on a GPU: 15.0 GB in 6.14 ms, so 2444 of 3350 GB/s, as measured on
/// an H100 with this program (burn's matrix products). For another engine see [`Machine::weights_gb_per_s`].
pub const PRODUCTS_REACHED: f64 = 0.73;

/// The same for the products of [`MANY_SEQUENCES`] tokens and more, which burn gives to matrix units: 13.2 GB in 18.0 ms, so 734 GB/s: burn is slower with
/// them than with one.
pub const MANY_PRODUCTS_REACHED: f64 = 0.22;

/// Sequences from which on a step's products are those of many tokens, for which burn has other kernels than for one. Measured with 16.
pub const MANY_SEQUENCES: usize = 2;

/// Microseconds of a layer beside attention and products in a captured step on a GPU: 42 to 47 with either attention, measured on an H100.
const GPU_LAYER_US: f64 = 45.0;

/// A machine, or one of several equal GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Memory for weights and caches, in 10^9 bytes.
    pub memory_gb: f64,
    /// Bandwidth of the memory, in 10^9 bytes a second: what the roofline is drawn with.
    pub gb_per_s: f64,
    /// Bandwidth at which the products of a step read weights, in 10^9 bytes a second.
    pub weights_gb_per_s: f64,
    /// The same from [`MANY_SEQUENCES`] sequences on; without it, no other.
    #[serde(default)]
    pub many_weights_gb_per_s: Option<f64>,
    /// Arithmetic of products, in 10^12 operations a second; without it, products are taken to be bound by memory at any batch.
    pub tflops: Option<f64>,
    /// Microseconds that a layer takes beside attention and products: norms, rotation, writing to the cache, launches.
    pub layer_us: f64,
    /// What the attention of a layer costs.
    pub costs: StepCosts,
}

/// Why there is no such machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Neither a name of the table nor a file.
    #[error(
        "machine: expected a part of a known GPU's name ({known}) or a file that --measure wrote, found {found:?}"
    )]
    Unknown {
        /// What was named.
        found: String,
        /// The names of the table.
        known: String,
    },
    /// The file can't be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not one of a machine.
    #[error("{}: expected a machine as JSON", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A figure that no machine has.
    #[error("machine {name}: {key}: expected {expected}, found {found}")]
    Value {
        /// The machine.
        name: String,
        /// The figure.
        key: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
    /// A cost that no machine has.
    #[error("machine {name}: costs")]
    Costs {
        /// The machine.
        name: String,
        /// Which, and why.
        source: SparqError,
    },
}

impl Machine {
    /// A GPU of the table, decoding with this program.
    pub fn gpu(gpu: &Gpu) -> Self {
        Self {
            name: gpu.name.to_owned(),
            memory_gb: gpu.memory_gb,
            gb_per_s: REACHED * gpu.gb_per_s,
            weights_gb_per_s: PRODUCTS_REACHED * gpu.gb_per_s,
            many_weights_gb_per_s: Some(MANY_PRODUCTS_REACHED * gpu.gb_per_s),
            tflops: Some(gpu.tflops),
            layer_us: GPU_LAYER_US,
            costs: StepCosts::gpu(REACHED * gpu.gb_per_s),
        }
    }

    /// The machine that a user names: a GPU by a part of its name, or the file of a measured machine.
    ///
    /// ```
    /// use sparq_plan::Machine;
    ///
    /// assert_eq!(Machine::find("h100")?.memory_gb, 80.0);
    /// # Ok::<(), sparq_plan::MachineError>(())
    /// ```
    ///
    /// # Errors
    /// When it is neither, or the file holds no machine.
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

    /// Reads a machine from the file that a measurement wrote.
    ///
    /// # Errors
    /// When it can't be read, is no machine, or has figures that none has.
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

    /// Bandwidth at which the products of a step of `batch` sequences read weights, in 10^9 bytes a second.
    pub fn weights_rate(&self, batch: usize) -> f64 {
        match self.many_weights_gb_per_s {
            Some(rate) if batch >= MANY_SEQUENCES => rate,
            _ => self.weights_gb_per_s,
        }
    }

    /// Checks that every figure is one that a machine can have.
    ///
    /// # Errors
    /// Naming the first that is not.
    pub fn validate(&self) -> Result<(), MachineError> {
        let positive = [
            ("memory_gb", self.memory_gb),
            ("gb_per_s", self.gb_per_s),
            ("weights_gb_per_s", self.weights_gb_per_s),
            (
                "many_weights_gb_per_s",
                self.many_weights_gb_per_s.unwrap_or(1.0),
            ),
            ("tflops", self.tflops.unwrap_or(1.0)),
        ];
        let bad = |value: f64| !(value.is_finite() && value > 0.0);
        let positive = positive.into_iter().find(|(_, value)| bad(*value));
        let found = match positive {
            Some((key, found)) => Some((key, "a number above 0", found)),
            None if !(self.layer_us.is_finite() && self.layer_us >= 0.0) => {
                Some(("layer_us", "0 or more", self.layer_us))
            }
            None => None,
        };
        if let Some((key, expected, found)) = found {
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
    fn a_machine_is_a_name_or_a_file() {
        assert_eq!(Machine::find("a100").unwrap().name, "A100");
        let unknown = Machine::find("abacus").unwrap_err().to_string();
        assert!(
            unknown.contains("\"abacus\"") && unknown.contains("H100"),
            "{unknown}"
        );

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
        assert!(
            error.to_string().contains("machine.json") && why.contains("memory_gb"),
            "{error}: {why}"
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn figures_that_no_machine_has_are_named() {
        let machine = Machine::find("H100").unwrap();
        assert!(machine.validate().is_ok());
        let slow = Machine {
            weights_gb_per_s: 0.0,
            ..machine.clone()
        };
        assert_eq!(
            slow.validate().unwrap_err().to_string(),
            "machine H100: weights_gb_per_s: expected a number above 0, found 0"
        );
        let early = Machine {
            layer_us: -1.0,
            ..machine
        };
        assert!(
            early
                .validate()
                .unwrap_err()
                .to_string()
                .contains("layer_us")
        );
    }
}
