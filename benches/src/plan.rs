//! What planning needs to know of a machine, measured on it.
//!
//! The attention of a layer is timed on a model's own heads at a few lengths, and the figures of the cost model are fitted to it; products are timed with
//! matrices of the model's width, and what a layer takes beside both with a model so small that nothing else counts.

use anyhow::{Context, Result};
use burn::nn::Linear;
use burn::tensor::{DType, Distribution, FloatDType, Tensor};
use sparq::methods::{Components, GroupScore};
use sparq::{Sketch, SparqConfig};
use sparq_device::DeviceChoice;
use sparq_plan::{Machine, ModelShape};

use crate::bandwidth::Bandwidth;
use crate::buffers::Room;
use crate::contender::{Calls, Kept};
use crate::e2e;
use crate::fit::{self, Fit};
use crate::op;
use crate::preset::{Case, Scope};
use crate::shape::{CacheType, Shape};
use crate::timing::{self, Pace};

/// Lengths of the caches that attention is timed on: on a CPU, and on a GPU, where short ones show launches alone.
const LENGTHS: [[usize; 3]; 2] = [[1024, 4096, 16_384], [4096, 16_384, 65_536]];

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The machine.
    pub machine: Machine,
    /// How well the cost model describes the attention that was timed.
    pub fit: Fit,
}

/// Measures a device for models like this one; `progress` hears what comes next.
///
/// `memory_gb` is the device's memory in 10^9 bytes, and `tflops` its arithmetic, neither of which is measured.
///
/// # Errors
/// When the device fails, or does not compute in the type.
pub fn measure(
    device: &DeviceChoice,
    model: &ModelShape,
    dtype: CacheType,
    (memory_gb, tflops): (f64, Option<f64>),
    (room, pace): (Room, &Pace),
    mut progress: impl FnMut(&str),
) -> Result<Measurement> {
    progress("attention");
    let run = op::run(
        &op::Setup {
            device: device.clone(),
            room,
            pace: *pace,
            scope: Scope {
                eager_bytes: 0.0,
                dense_burn_bytes: 0.0,
            },
        },
        &cases(model, dtype, device.is_gpu()),
        |_, _| (),
    )?;
    if let Some(why) = run.rows.iter().find_map(|row| row.skipped.as_ref()) {
        anyhow::bail!("{device}: attention could not be timed: {why}");
    }
    let fit = fit::fit_runs(&[&run], &device.to_string())?;
    progress("products");
    let weights_gb_per_s = products(device, model, dtype, &room, pace)?;
    progress("layers");
    let layer_us = layer_us(device, dtype, room, pace)?;
    let machine = Machine {
        name: device.gpu_name().unwrap_or_else(|| device.to_string()),
        memory_gb,
        gb_per_s: Bandwidth::reference_gb_per_s(&run.bandwidth),
        weights_gb_per_s,
        many_weights_gb_per_s: None,
        tflops,
        layer_us,
        costs: fit.costs,
    };
    machine.validate()?;
    Ok(Measurement { machine, fit })
}

/// Dense attention and SparQ with the full sketch and with codes of 4 bits, on the model's heads.
fn cases(model: &ModelShape, dtype: CacheType, gpu: bool) -> Vec<Case> {
    let rank = (model.head_dim / 4).max(1);
    let mut settings: Vec<SparqConfig> = [Sketch::Full, Sketch::Bits4]
        .map(|sketch| SparqConfig::new(rank, 128).with_sketch(sketch))
        .into();
    if model.heads > model.kv_heads {
        // Fewer scores at the same bytes, which tells the time of the two apart.
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
    };
    LENGTHS[usize::from(gpu)].map(case).into()
}

/// The bandwidth at which products of one vector read matrices of the model's width, more of them than the processor's cache holds.
fn products(
    device: &DeviceChoice,
    model: &ModelShape,
    dtype: CacheType,
    room: &Room,
    pace: &Pace,
) -> Result<f64> {
    let (inputs, outputs) = (model.hidden_size, 4 * model.hidden_size);
    let bytes = (inputs * outputs * dtype.bytes()) as f64;
    let count = room
        .sets(bytes, bytes, 0.0)
        .context("no memory for the matrices that products are timed with")?;
    let handle = device.open();
    let dtype = DType::from(FloatDType::from(dtype));
    let random = |shape: [usize; 2]| {
        Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), (&handle, dtype))
    };
    let linears: Vec<Linear> = (0..count)
        .map(|_| sparq_models::linear(random([inputs, outputs]), None))
        .collect();
    let x = random([1, inputs]).unsqueeze::<3>();
    let calls: Calls = Box::new(move |set| Kept::rest(linears[set].forward(x.clone())));
    let time = match device.is_gpu() {
        true => timing::captured(&handle, &calls, count, pace)?.0,
        false => timing::eager(&handle, &calls, count, pace)?,
    };
    Ok(bytes / time.median_us / 1e3)
}

/// What a layer takes beside attention and products, with dense attention.
fn layer_us(device: &DeviceChoice, dtype: CacheType, room: Room, pace: &Pace) -> Result<f64> {
    let setup = e2e::Setup {
        device: device.clone(),
        room,
        pace: *pace,
        dtype,
        settings: vec![],
    };
    let tiny = e2e::model::ModelShape::Tiny;
    let run = e2e::model::RunShape {
        model: tiny,
        batch: 1,
        seq_len: 256,
    };
    let found = e2e::run(&setup, &[run], |_| ())?;
    let row = found.rows.first();
    let rest = row.and_then(|row| row.rest_us()).with_context(|| {
        let why = row.and_then(|row| row.skipped.clone());
        format!(
            "{device}: a small model could not be timed: {}",
            why.unwrap_or_default()
        )
    })?;
    // The parts are timed one by one, and may come to a little more than the whole.
    Ok((rest / tiny.layers() as f64).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_measured() {
        let device = sparq_device::available()[0].clone();
        let model = e2e::model::ModelShape::Tiny.plan();
        let mut steps = Vec::new();
        let found = measure(
            &device,
            &model,
            CacheType::F32,
            (8.0, None),
            (Room::likely(&device, None, Some(1.0), false), &Pace::QUICK),
            |step| steps.push(step.to_owned()),
        )
        .unwrap();
        assert_eq!(steps, ["attention", "products", "layers"]);
        assert!(found.fit.steps >= 9, "{}", found.fit.steps);
        // What a processor of any kind does; a unit that is off by a thousand is not.
        let machine = found.machine;
        for rate in [machine.gb_per_s, machine.weights_gb_per_s] {
            assert!((0.05..10_000.0).contains(&rate), "{machine:?}");
        }
        assert!(machine.layer_us < 1e5, "{machine:?}");
    }
}
