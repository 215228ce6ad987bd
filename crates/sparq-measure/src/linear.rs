//! Times the linear layers of a decoder layer as a decode step runs them: one operation with the
//! norm before and the epilogue after the product.
//!
//! Calls rotate through weights that exceed the cache together, since a step reads each weight
//! once.

use anyhow::{Context, Result};
use burn::tensor::{Bytes, Device, Distribution, FloatDType, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparq::ops::{
    Activation, BlockFormat, Norm, PackedWeight, Projection, Projections, Weight, decode_linear,
};
use sparq_device::DeviceChoice;

use crate::bandwidth::{self, Bandwidth};
use crate::calls::{Calls, Kept};
use crate::guard::guarded;
use crate::memory::DeviceMemory;
use crate::shape::CacheType;
use crate::stats::Summary;
use crate::timing::{self, Pace};

/// The fewest weights that calls rotate through.
const LEAST_SETS: usize = 4;

/// The sizes of a model's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LayerSizes {
    /// Llama 3 8B.
    #[value(name = "llama3-8b")]
    #[serde(rename = "llama3-8b")]
    Llama3_8b,
    /// Llama 2 7B.
    #[value(name = "llama2-7b")]
    #[serde(rename = "llama2-7b")]
    Llama2_7b,
    /// Small enough for every device.
    Tiny,
}

impl LayerSizes {
    /// Hidden size, KV size, inner size and vocabulary.
    fn sizes(self) -> [usize; 4] {
        match self {
            Self::Llama3_8b => [4096, 1024, 14336, 128256],
            Self::Llama2_7b => [4096, 4096, 11008, 32000],
            Self::Tiny => [256, 64, 688, 1024],
        }
    }

    /// The operations of a decode step with linear layers.
    pub fn operations(self) -> Vec<Operation> {
        let [hidden, kv, inner, vocabulary] = self.sizes();
        let operation = |name: &str, features, outputs: &[usize]| Operation {
            name: name.into(),
            features,
            outputs: outputs.to_vec(),
            normed: false,
            gated: false,
            residual: false,
        };
        vec![
            Operation {
                normed: true,
                ..operation("q, k, v", hidden, &[hidden, kv, kv])
            },
            Operation {
                residual: true,
                ..operation("o", hidden, &[hidden])
            },
            Operation {
                normed: true,
                gated: true,
                ..operation("gate, up", hidden, &[inner, inner])
            },
            Operation {
                residual: true,
                ..operation("down", inner, &[hidden])
            },
            operation("head", hidden, &[vocabulary]),
        ]
    }
}

/// One operation: an RMS norm, linear layers, and a gate or a residual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// Inputs of each layer.
    pub features: usize,
    /// Outputs of each layer.
    pub outputs: Vec<usize>,
    /// An RMS norm goes before the layers.
    pub normed: bool,
    /// The first layer is the gate of the second, under SiLU.
    pub gated: bool,
    /// A residual is added.
    pub residual: bool,
}

impl Operation {
    /// Bytes of the weights.
    fn weight_bytes(&self, types: Types) -> f64 {
        let row = match types.weights {
            None => self.features * types.dtype.bytes(),
            Some(format) => format.row_bytes(self.features),
        };
        (self.outputs.iter().sum::<usize>() * row) as f64
    }

    /// Outputs of a row.
    fn width(&self) -> usize {
        match self.gated {
            true => self.outputs[0],
            false => self.outputs.iter().sum(),
        }
    }

    /// Bytes to move: the weights, and `rows` rows of x, of the residual and of the result.
    pub fn bytes(&self, rows: usize, types: Types) -> f64 {
        let width = self.width() * (1 + usize::from(self.residual));
        let floats = rows * (self.features + width) * types.dtype.bytes();
        self.weight_bytes(types) + floats as f64
    }

    /// Returns calls on `sets` sets of weights.
    fn calls(&self, rows: usize, sets: usize, types: Types, device: &Device) -> Result<Calls> {
        let dtype = FloatDType::from(types.dtype);
        let draw = |from: usize, to: usize| {
            let uniform = Distribution::Uniform(-1.0, 1.0);
            Tensor::<2>::random([from, to], uniform, device).cast(dtype)
        };
        let x = draw(rows, self.features);
        let residual = self.residual.then(|| draw(rows, self.width()));
        let scale: Tensor<1> = draw(1, self.features).squeeze_dim(0);
        let norm = match self.normed {
            false => Norm::None,
            true => Norm::Rms {
                weight: scale,
                epsilon: 1e-5,
            },
        };
        let small = (self.features as f32).sqrt().recip();
        let layers = || -> Result<Projections> {
            let layer = |&outputs: &usize| -> Result<Projection> {
                let weight = match types.weights {
                    None => Weight::Float(draw(outputs, self.features) * small),
                    Some(format) => packed(format, [outputs, self.features], device)?,
                };
                let bias = None;
                Ok(Projection { weight, bias })
            };
            let layers: Result<Vec<_>> = self.outputs.iter().map(layer).collect();
            Ok(self.projections(layers?))
        };
        let sets: Vec<Projections> = (0..sets).map(|_| layers()).collect::<Result<_>>()?;
        Ok(Box::new(move |set| {
            let projections = sets[set].clone();
            let y = decode_linear(x.clone(), norm.clone(), projections, residual.clone());
            Kept::output(y.unsqueeze())
        }))
    }

    fn projections(&self, mut layers: Vec<Projection>) -> Projections {
        let mut next = || layers.remove(0);
        match (self.gated, self.outputs.len()) {
            (true, _) => Projections::Gated {
                gate: next(),
                up: next(),
                activation: Activation::Silu,
            },
            (false, 1) => Projections::One(next()),
            (false, 2) => Projections::Two(next(), next()),
            (false, _) => Projections::Three(next(), next(), next()),
        }
    }
}

/// Returns a weight of small codes and scales: bytes of 0 to 3 are a number near zero in f16.
fn packed(format: BlockFormat, dims: [usize; 2], device: &Device) -> Result<Weight> {
    let bytes = format.matrix_bytes(dims)?;
    let bytes = (0..bytes).map(|i| (i * 7 / 5 % 4) as u8).collect();
    let weight = PackedWeight::new(Bytes::from_bytes_vec(bytes), format, dims, device)?;
    Ok(Weight::Packed(weight))
}

/// The types of the tensors.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    /// The type of activations, and of weights that are not packed.
    pub dtype: CacheType,
    /// The format of packed weights.
    pub weights: Option<BlockFormat>,
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache.
    pub memory: DeviceMemory,
    /// How long to measure.
    pub pace: Pace,
    /// The types of the tensors.
    pub types: Types,
    /// The model whose layers are measured.
    pub sizes: LayerSizes,
    /// The numbers of rows.
    pub rows: Vec<usize>,
}

/// The results of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the device on the command line.
    pub device: String,
    /// Name of the GPU, as reported by the driver.
    pub gpu: Option<String>,
    /// The model whose layers were measured.
    pub sizes: LayerSizes,
    /// The type of activations, and of weights that are not packed.
    pub dtype: CacheType,
    /// The format of packed weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The memory bandwidth, measured just before the rows.
    pub bandwidth: Bandwidth,
    /// One for each operation and number of rows.
    pub rows: Vec<Row>,
}

/// One operation on a number of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The operation.
    pub operation: Operation,
    /// Rows of x.
    pub rows: usize,
    /// Bytes to move.
    pub bytes: f64,
    /// The measurement. `None` if the case could not run.
    pub measured: Option<Measured>,
    /// The reason why the case was not measured.
    pub skipped: Option<String>,
}

/// The measurement of a [`Row`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Time of one call: captured on a GPU, eager on a CPU.
    pub time: Summary,
    /// Bytes to move divided by the median time.
    pub gb_per_s: f64,
    /// `gb_per_s` divided by [`Bandwidth::reference_gb_per_s`].
    pub share_of_bandwidth: f64,
    /// The number of weights that calls rotate through.
    pub weight_sets: usize,
    /// True if the device captured a graph. Absent for eager calls.
    pub hardware_graph: Option<bool>,
}

/// Measures the bandwidth and then every operation on every number of rows.
///
/// A case that cannot run on the device gives a row with the reason.
///
/// # Errors
/// If the device fails while its bandwidth is measured.
pub fn run(setup: &Setup, mut progress: impl FnMut(&Row)) -> Result<Run> {
    let bandwidth = bandwidth::measure(&setup.device, &setup.memory, &setup.pace)?;
    let mut rows = Vec::new();
    for operation in setup.sizes.operations() {
        for &count in &setup.rows {
            let row = measure(setup, &operation, count, &bandwidth);
            progress(&row);
            rows.push(row);
            setup.device.open().memory_cleanup();
        }
    }
    Ok(Run {
        device: setup.device.to_string(),
        gpu: setup.device.gpu_name(),
        sizes: setup.sizes,
        dtype: setup.types.dtype,
        weights: setup.types.weights.map(|format| format.to_string()),
        bandwidth,
        rows,
    })
}

fn measure(setup: &Setup, operation: &Operation, rows: usize, bandwidth: &Bandwidth) -> Row {
    let bytes = operation.bytes(rows, setup.types);
    let outcome = guarded(|| sample(setup, operation, rows));
    let measured = outcome.map(|(time, weight_sets, hardware_graph)| {
        let gb_per_s = bytes / time.median_us / 1e3;
        Measured {
            time,
            gb_per_s,
            share_of_bandwidth: gb_per_s / bandwidth.reference_gb_per_s(),
            weight_sets,
            hardware_graph,
        }
    });
    Row {
        operation: operation.clone(),
        rows,
        bytes,
        skipped: measured.as_ref().err().cloned(),
        measured: measured.ok(),
    }
}

fn sample(
    setup: &Setup,
    operation: &Operation,
    rows: usize,
) -> Result<(Summary, usize, Option<bool>)> {
    let size = operation.weight_bytes(setup.types);
    // Floats are drawn in fp32, and blocks are laid out anew.
    let drawn = match setup.types.weights {
        None => 4.0 / setup.types.dtype.bytes() as f64 * size,
        Some(_) => size,
    };
    let needed = LEAST_SETS as f64 * size + drawn;
    let sets = setup.memory.sets(size, size, drawn);
    let sets = sets.map(|sets| sets.max(LEAST_SETS));
    let sets = sets
        .filter(|_| needed <= setup.memory.available)
        .with_context(|| setup.memory.too_small_for(needed))?;
    let device = setup.device.open();
    let calls = operation.calls(rows, sets, setup.types, &device)?;
    (0..sets).try_for_each(|set| calls(set).check())?;
    match setup.device.is_gpu() {
        true => {
            let (time, hardware) = timing::captured(&device, &calls, sets, &setup.pace)?;
            Ok((time, sets, Some(hardware)))
        }
        false => Ok((
            timing::eager(&device, &calls, sets, &setup.pace)?,
            sets,
            None,
        )),
    }
}
