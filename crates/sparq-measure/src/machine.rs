//! Measures the figures of a machine that [`sparq_plan`] predicts with.
//!
//! Attention of one layer is timed on the heads of a model at a few lengths, and the figures of the
//! cost model are fitted to it. Products are timed with matrices of the model's width. The rest of
//! a layer is timed with a model so small that attention and products take almost no time.

use anyhow::{Context, Result, bail};
use burn::nn::Linear;
use burn::tensor::{DType, Distribution, FloatDType, Tensor};
use sparq::methods::{Components, GroupScore};
use sparq::{Sketch, SparqConfig};
use sparq_device::DeviceChoice;
use sparq_plan::{Machine, ModelShape};

use crate::attention::{self, Case, Scope};
use crate::calls::{Calls, Kept};
use crate::fit::{self, Fit};
use crate::memory::DeviceMemory;
use crate::model::{self, ModelName, RunShape};
use crate::shape::{CacheType, Shape};
use crate::timing::{self, Pace};

/// S of the caches that attention is timed on: on a CPU, and on a GPU, where with a small S only
/// the launches show.
const LENGTHS: [[usize; 3]; 2] = [[1024, 4096, 16_384], [4096, 16_384, 65_536]];

/// A measured machine.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The machine.
    pub machine: Machine,
    /// The fit of the cost model to the timed attention.
    pub fit: Fit,
}

/// The settings of a measurement.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache, for the buffers of the measurement.
    pub memory: DeviceMemory,
    /// How long to measure.
    pub pace: Pace,
    /// The element type of weights and caches.
    pub dtype: CacheType,
    /// Memory of the device in 10^9 bytes: not measured, passed on to the [`Machine`].
    pub memory_gb: f64,
    /// Arithmetic of the device in 10^12 operations per second: not measured, passed on.
    pub tflops: Option<f64>,
}

/// Measures a device for models of this shape. Passes the name of each stage to `progress` before
/// the stage begins.
///
/// # Errors
/// If the device fails or does not support the element type.
pub fn measure(
    setup: &Setup,
    model: &ModelShape,
    mut progress: impl FnMut(&str),
) -> Result<Measurement> {
    let device = &setup.device;
    progress("attention");
    let run = attention::run(
        &attention::Setup {
            device: device.clone(),
            memory: setup.memory,
            pace: setup.pace,
            scope: Scope::CAPTURED,
        },
        &cases(model, setup.dtype, device.is_gpu()),
        |_, _| (),
    )?;
    if let Some(why) = run.rows.iter().find_map(|row| row.skipped.as_ref()) {
        bail!("{device}: attention could not be timed: {why}");
    }
    let fit = fit::fit(&[&run], &device.to_string())?;
    progress("products");
    let weights_gb_per_s = products(setup, model)?;
    progress("layers");
    let layer_us = layer_us(setup)?;
    let machine = Machine {
        name: device.gpu_name().unwrap_or_else(|| device.to_string()),
        memory_gb: setup.memory_gb,
        gb_per_s: run.bandwidth.reference_gb_per_s(),
        weights_gb_per_s,
        many_weights_gb_per_s: None,
        dense_scores_per_us: None,
        tflops: setup.tflops,
        layer_us,
        costs: fit.costs,
    };
    machine.validate()?;
    Ok(Measurement { machine, fit })
}

/// Cases of dense attention and of SparQ with the full and the 4-bit sketch, on the model's heads.
fn cases(model: &ModelShape, dtype: CacheType, gpu: bool) -> Vec<Case> {
    let rank = (model.head_dim / 4).max(1);
    let mut settings: Vec<SparqConfig> = [Sketch::Full, Sketch::Bits4]
        .map(|sketch| SparqConfig::new(rank, 128).with_sketch(sketch))
        .into();
    if model.heads > model.kv_heads {
        // The same bytes with fewer scores: this separates the time per byte from that per score.
        settings.extend(settings.clone().into_iter().map(|config| {
            config
                .with_group_score(GroupScore::Logits)
                .with_components(Components::AbsSum)
        }));
    }
    let case = |seq_len| Case {
        shape: Shape::new(1, model.heads, model.kv_heads, model.head_dim, seq_len),
        dtype,
        settings: settings.clone(),
        sharing: None,
    };
    LENGTHS[usize::from(gpu)].map(case).into()
}

/// The bandwidth at which products of one vector read matrices of the model's width. The matrices
/// together exceed the last-level cache.
fn products(setup: &Setup, model: &ModelShape) -> Result<f64> {
    let (inputs, outputs) = (model.hidden_size, 4 * model.hidden_size);
    let bytes = (inputs * outputs * setup.dtype.bytes()) as f64;
    let count = setup
        .memory
        .sets(bytes, bytes, 0.0)
        .with_context(|| format!("products: {}", setup.memory.too_small_for(bytes)))?;
    let device = setup.device.open();
    let dtype = DType::from(FloatDType::from(setup.dtype));
    let random = |shape: [usize; 2]| {
        Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), (&device, dtype))
    };
    let linears: Vec<Linear> = (0..count)
        .map(|_| sparq_models::linear(random([inputs, outputs]), None))
        .collect();
    let x = random([1, inputs]).unsqueeze::<3>();
    let calls: Calls = Box::new(move |set| Kept::rest(linears[set].forward(x.clone())));
    let time = match setup.device.is_gpu() {
        true => timing::captured(&device, &calls, count, &setup.pace)?.0,
        false => timing::eager(&device, &calls, count, &setup.pace)?,
    };
    Ok(bytes / time.median_us / 1e3)
}

/// The time of a layer besides attention and products, with dense attention.
fn layer_us(setup: &Setup) -> Result<f64> {
    let Setup { device, dtype, .. } = setup;
    let steps = model::Setup {
        device: device.clone(),
        memory: setup.memory,
        pace: setup.pace,
        dtype: *dtype,
        weights: None,
        settings: vec![],
        verified_rows: vec![],
    };
    let run = RunShape {
        model: ModelName::Tiny,
        batch: 1,
        seq_len: 256,
    };
    let found = model::run(&steps, &[run], |_| ())?;
    let row = found.rows.first();
    let rest = row.and_then(|row| row.rest_us()).with_context(|| {
        let why = row
            .and_then(|row| row.skipped.as_deref())
            .unwrap_or_default();
        format!("{device}: a small model could not be timed: {why}")
    })?;
    // The parts are timed separately and may sum to slightly more than the whole step.
    Ok((rest / run.model.config().num_hidden_layers as f64).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_measurement_is_plausible() {
        let device = sparq_device::available()[0].clone();
        let setup = Setup {
            memory: DeviceMemory::estimate(&device, None, Some(1.0), false),
            device,
            pace: Pace::QUICK,
            dtype: CacheType::F32,
            memory_gb: 8.0,
            tflops: None,
        };
        let mut stages = Vec::new();
        let found = measure(&setup, &ModelName::Tiny.plan(), |stage| {
            stages.push(stage.to_owned());
        })
        .unwrap();
        assert_eq!(stages, ["attention", "products", "layers"]);
        let steps = found.fit.errors.count();
        assert!(steps >= 9, "{steps}");
        // Wide enough for any processor, too narrow for a unit that is off by a thousand.
        let machine = found.machine;
        for rate in [machine.gb_per_s, machine.weights_gb_per_s] {
            assert!((0.05..10_000.0).contains(&rate), "{machine:?}");
        }
        assert!(machine.layer_us < 1e5, "{machine:?}");
    }
}
