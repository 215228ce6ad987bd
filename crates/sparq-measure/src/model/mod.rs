//! Times whole decode steps of models with random weights: dense and SparQ, eager and captured.
//!
//! The models have published shapes. Weights and cache contents are random numbers, which does not
//! change the bytes to move. A step takes a token through the whole model to the next token, which
//! stays on the device. The caches are filled without a prefill, so that S = 131072 takes a second
//! instead of minutes.

mod filled;
mod name;
mod parts;
mod published;
mod record;

use anyhow::Result;
use burn::tensor::Device;
use sparq::ops::BlockFormat;
use sparq::{Method, SparqConfig};
use sparq_device::DeviceChoice;
use sparq_models::Decoder;

use crate::bandwidth;
use crate::guard::guarded;
use crate::memory::DeviceMemory;
use crate::shape::CacheType;
use crate::stats::Summary;
use crate::timing::Pace;
use filled::{FilledModel, SLACK};
pub(crate) use name::layer_matrices;
pub use name::{ModelName, RunShape};
pub use record::{Captured, DeviceRun, Lossless, Parts, StepRow, Verification};

/// The settings that all runs share.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache.
    pub memory: DeviceMemory,
    /// How long to measure the bandwidth and the parts.
    pub pace: Pace,
    /// The element type of activations and caches, and of weights that are not packed.
    pub dtype: CacheType,
    /// The format of packed weights.
    pub weights: Option<BlockFormat>,
    /// SparQ's settings, each compared with dense attention.
    pub settings: Vec<SparqConfig>,
    /// The numbers of rows of verifications to time after drafts by SparQ.
    pub verified_rows: Vec<usize>,
}

impl Setup {
    /// Bytes of the weights that every step reads.
    fn weight_bytes(&self, model: ModelName) -> f64 {
        match self.weights {
            None => model.weight_bytes(self.dtype),
            Some(format) => model.packed_bytes(format),
        }
    }
}

/// Measures the bandwidth, then each run with dense attention and with SparQ. Passes each row to
/// `progress`.
///
/// A run that does not fit gives a row with the reason. Consecutive runs of one model share its
/// weights.
///
/// # Errors
/// If the device fails while its bandwidth is measured, or does not support the element type.
pub fn run(
    setup: &Setup,
    runs: &[RunShape],
    mut progress: impl FnMut(&StepRow),
) -> Result<DeviceRun> {
    let bandwidth = bandwidth::measure(&setup.device, &setup.memory, &setup.pace)?;
    let device = setup.device.open();
    device.seed(0);
    let mut rows = Vec::new();
    let mut built: Option<(ModelName, Decoder)> = None;
    for &run in runs {
        // Frees the old weights before the new ones are allocated.
        built.take_if(|(model, _)| *model != run.model);
        device.memory_cleanup();
        let (_, model) = match &mut built {
            Some(built) => built,
            none => {
                let model = run.model.build(setup.dtype, setup.weights, &device)?;
                none.insert((run.model, model))
            }
        };
        let sparq = setup.settings.iter().map(|&config| Some(config));
        for settings in std::iter::once(None).chain(sparq) {
            let mut row = StepRow::new(run, setup, settings, &bandwidth);
            match measure(setup, model, &run, settings, &device) {
                Ok(times) => {
                    row.eager = Some(times.eager);
                    row.captured = times.captured;
                    row.parts = times.parts;
                    row.verifications = times.verifications;
                }
                Err(why) => row.skipped = Some(why),
            }
            progress(&row);
            rows.push(row);
            device.memory_cleanup();
        }
    }
    Ok(DeviceRun {
        device: setup.device.to_string(),
        gpu: setup.device.gpu_name(),
        bandwidth,
        rows,
    })
}

/// The measurements of a row.
struct Times {
    eager: Summary,
    captured: Option<Captured>,
    parts: Option<Parts>,
    verifications: Vec<Verification>,
}

fn measure(
    setup: &Setup,
    model: &Decoder,
    run: &RunShape,
    settings: Option<SparqConfig>,
    device: &Device,
) -> Result<Times, String> {
    let needed = memory_bytes(run, setup, settings);
    if needed > setup.memory.available {
        return Err(setup.memory.too_small_for(needed));
    }
    let method = settings.map_or(Method::DENSE, Method::from);
    guarded(|| {
        let mut filled = FilledModel::new(model, run, setup.dtype, method)?;
        let eager = filled.eager(device)?;
        let captured = match setup.device.is_gpu() {
            true => Some(filled.captured(device)?),
            false => None,
        };
        let rows = settings.map_or(&[][..], |_| &setup.verified_rows);
        let verifications = rows.iter().map(|&rows| {
            let time = filled.verification(device, rows)?;
            Ok(Verification { rows, time })
        });
        let verifications = verifications.collect::<Result<_>>()?;
        // The parts are products with floats.
        let parts = match setup.weights {
            None => Some(parts::measure(setup, device, filled, run)?),
            Some(_) => None,
        };
        Ok(Times {
            eager,
            captured,
            parts,
            verifications,
        })
    })
}

/// Bytes of weights and caches, with the memory that filling the caches takes.
fn memory_bytes(run: &RunShape, setup: &Setup, settings: Option<SparqConfig>) -> f64 {
    let dtype = setup.dtype;
    let kv = run.kv_bytes(dtype) * (1.0 + SLACK as f64 / run.seq_len as f64);
    let sketch = settings.map_or(0.0, |config| match config.sketch.bits() {
        None => 0.5,
        Some(bits) => bits as f64 / (16 * dtype.bytes()) as f64,
    });
    let config = run.model.config();
    let table = (config.vocab_size * config.hidden_size * dtype.bytes()) as f64;
    // The values of a layer in f32 for their sum, and its keys transposed.
    let filling = 2.0 * kv / config.num_hidden_layers as f64;
    setup.weight_bytes(run.model) + table + kv * (1.0 + sketch) + filling
}
