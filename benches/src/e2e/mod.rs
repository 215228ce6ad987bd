//! A whole decode step of a model with random weights: dense and SparQ, call by call and captured, and where its time goes.
//!
//! Shapes are those of models that are used, weights and the contents of the caches are random numbers on the device: neither changes what has to be
//! moved. A step is a token's way through the whole model to the next token, whose number stays on the device. The caches are filled without a
//! prefill, so that a length of 131072 takes a second and not minutes.

mod decoder;
pub mod model;
mod parts;
pub mod peers;
pub mod report;
mod table;

use anyhow::Result;
use burn::tensor::Device;
use sparq::{Method, SparqConfig};
use sparq_models::Decoder as Llama;

use crate::bandwidth;
use crate::buffers::Room;
use crate::guard::guarded;
use crate::shape::CacheType;
use crate::table::bytes;
use crate::timing::Pace;
use decoder::{Decoder, SLACK};
use model::RunShape;
use report::{DeviceRun, Parts, StepRow};
use sparq_device::DeviceChoice;

pub use table::{breakdown, notes, skipped, steps};

/// What is the same for all runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache.
    pub room: Room,
    /// How long to measure bandwidth and parts.
    pub pace: Pace,
    /// The type of weights and caches.
    pub dtype: CacheType,
    /// SparQ's settings, each beside dense attention.
    pub settings: Vec<SparqConfig>,
}

/// Measures the bandwidth and then each of the runs with dense attention and with SparQ, and tells `progress` of each row.
///
/// What can't run becomes a row that says why. Runs of one model that follow each other share its weights.
///
/// # Errors
/// When the device fails while its bandwidth is measured, or can't compute in the type.
pub fn run(
    setup: &Setup,
    runs: &[RunShape],
    mut progress: impl FnMut(&StepRow),
) -> Result<DeviceRun> {
    let bandwidth = bandwidth::measure(&setup.device, &setup.room, &setup.pace)?;
    let device = setup.device.open();
    device.seed(0);
    let mut rows = Vec::new();
    let mut built: Option<(model::ModelShape, Llama)> = None;
    for run in runs {
        // The old weights go before the new ones come.
        built.take_if(|(shape, _)| *shape != run.model);
        device.memory_cleanup();
        let (_, model) = match &mut built {
            Some(built) => built,
            none => none.insert((run.model, run.model.build(setup.dtype, &device)?)),
        };
        let sparq = setup.settings.iter().map(|&config| Some(config));
        for settings in std::iter::once(None).chain(sparq) {
            let mut row = run.row(setup.dtype, settings, &bandwidth);
            match measure(setup, model, run, settings, &device) {
                Ok((eager, captured, parts)) => {
                    row.eager = Some(eager);
                    row.captured = captured;
                    row.parts = Some(parts);
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

type Times = (crate::stats::Summary, Option<report::Captured>, Parts);

fn measure(
    setup: &Setup,
    model: &Llama,
    run: &RunShape,
    settings: Option<SparqConfig>,
    device: &Device,
) -> Result<Times, String> {
    let needed = run.memory(setup.dtype, settings);
    if needed > setup.room.memory {
        return Err(format!(
            "needs {}, of {} that it may take; raise --memory-gib where there is more",
            bytes(needed),
            bytes(setup.room.memory)
        ));
    }
    let method = settings.map_or(Method::DENSE, Method::from);
    guarded(|| {
        let mut decoder = Decoder::new(model, run, setup.dtype, method)?;
        let eager = decoder.eager(device)?;
        let captured = match setup.device.is_gpu() {
            true => Some(decoder.captured(device)?),
            false => None,
        };
        let parts = parts::measure(
            setup.device.is_gpu(),
            device,
            decoder,
            run,
            setup.dtype,
            &setup.pace,
        )?;
        Ok((eager, captured, parts))
    })
}

impl RunShape {
    /// Bytes that weights and caches take, with room for what filling them needs.
    fn memory(&self, dtype: CacheType, settings: Option<SparqConfig>) -> f64 {
        let kv = self.kv_bytes(dtype) * (1.0 + SLACK as f64 / self.seq_len as f64);
        let sketch = settings.map_or(0.0, |config| match config.sketch.bits() {
            None => 0.5,
            Some(bits) => bits as f64 / (16 * dtype.bytes()) as f64,
        });
        let table = (self.model.vocab_size() * self.model.hidden_size() * dtype.bytes()) as f64;
        // A layer's values once in f32 for their sum, and its keys transposed.
        let filling = 2.0 * kv / self.model.layers() as f64;
        self.model.weight_bytes(dtype) + table + kv * (1.0 + sketch) + filling
    }
}
