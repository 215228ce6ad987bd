//! Times one decode step of attention on one device: dense and SparQ, eager and captured.

mod buffers;
mod case;
mod implementation;
mod record;
mod sharing;
pub mod stage;

use anyhow::Result;
use sparq_device::DeviceChoice;

use crate::bandwidth::{self, Bandwidth};
use crate::calls::Calls;
use crate::guard::guarded;
use crate::memory::DeviceMemory;
use crate::stats::Summary;
use crate::timing::{self, Mode, Pace};
use buffers::Source;
pub use case::{Case, Scope};
use implementation::{Implementation, Prepared};
pub use record::{Measured, MethodName, Row, Run, sketch_name, sparq_label};
use stage::{Stage, StageTime};

/// The settings that all cases of a run share.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache.
    pub memory: DeviceMemory,
    /// How long to measure.
    pub pace: Pace,
    /// Limits on the cases.
    pub scope: Scope,
}

/// Measures the bandwidth and then every case, and passes the rows of each case to `progress`.
///
/// A case that cannot run on the device gives a row with the reason.
///
/// # Errors
/// If the device fails while its bandwidth is measured.
pub fn run(
    setup: &Setup,
    cases: &[Case],
    mut progress: impl FnMut(&Bandwidth, &[Row]),
) -> Result<Run> {
    let bandwidth = bandwidth::measure(&setup.device, &setup.memory, &setup.pace)?;
    let mut rows = Vec::new();
    for case in cases {
        let of_case = measure_case(setup, &bandwidth, case);
        progress(&bandwidth, &of_case);
        rows.extend(of_case);
    }
    Ok(Run {
        device: setup.device.to_string(),
        gpu: setup.device.gpu_name(),
        cache_bytes: setup.memory.cache as u64,
        bandwidth,
        rows,
    })
}

fn measure_case(setup: &Setup, bandwidth: &Bandwidth, case: &Case) -> Vec<Row> {
    let source_bytes = case.shape.kv_bytes(case.dtype);
    let modes: &[Mode] = match setup.device.is_gpu() {
        true if source_bytes <= setup.scope.eager_bytes => &[Mode::Eager, Mode::Captured],
        true => &[Mode::Captured],
        false => &[Mode::Eager],
    };
    // Beside the source, one more set has to fit; the conversion of random numbers needs as much.
    let source = match 2.0 * source_bytes > setup.memory.available {
        true => Err(setup.memory.too_small_for(2.0 * source_bytes)),
        false => guarded(|| Ok(Source::new(case, &setup.device.open()))),
    };
    let mut rows: Vec<Row> = Vec::new();
    for implementation in implementation::all(case, &setup.scope) {
        let implementation = implementation.as_ref();
        let results = match &source {
            Ok(source) => measure(setup, case, implementation, source, modes, bandwidth),
            Err(why) => vec![Err(why.clone()); modes.len()],
        };
        for (&mode, result) in modes.iter().zip(results) {
            rows.push(row(case, implementation, mode, result));
        }
        // The next buffers have other sizes: without the cleanup they would be slices of these.
        setup.device.open().memory_cleanup();
    }
    relate_to_dense(&mut rows);
    rows
}

/// A measurement of one implementation in one mode, or the reason why there is none.
type Outcome = Result<(Measured, Vec<StageTime>), String>;

/// Times an implementation in each mode. The source stays in memory beside the buffers.
fn measure(
    setup: &Setup,
    case: &Case,
    implementation: &dyn Implementation,
    source: &Source,
    modes: &[Mode],
    bandwidth: &Bandwidth,
) -> Vec<Outcome> {
    let read = implementation.transfers(case).bytes();
    let of_call = read * implementation.layers().unwrap_or(1) as f64;
    let size = implementation.set_bytes(case);
    let taken = case.shape.kv_bytes(case.dtype);
    let prepared = match setup.memory.sets(of_call, size, taken) {
        None => Err(setup.memory.too_small_for(size + taken)),
        Some(sets) => guarded(|| {
            let prepared = implementation.prepare(source, sets)?;
            (0..sets).try_for_each(|set| (prepared.whole)(set).check())?;
            Ok((prepared, sets))
        }),
    };
    match prepared {
        Err(why) => vec![Err(why); modes.len()],
        Ok((prepared, sets)) => modes
            .iter()
            .map(|&mode| {
                let (time, hardware_graph, until) =
                    guarded(|| sample(setup, &prepared, sets, mode))?;
                let layers = implementation.layers().unwrap_or(1);
                let time = time.per_layer(layers);
                let working_set_bytes = (sets * layers) as f64 * read;
                let gb_per_s = read / time.median_us / 1e3;
                let measured = Measured {
                    time,
                    gb_per_s,
                    share_of_bandwidth: gb_per_s / bandwidth.reference_gb_per_s(),
                    speedup_over_dense: None,
                    buffer_sets: sets,
                    working_set_bytes,
                    cold: setup.memory.is_cold(working_set_bytes),
                    hardware_graph,
                };
                let stages = match implementation.settings() {
                    Some(config) if !until.is_empty() => {
                        let bytes = |stage: Stage| stage.bytes(&case.shape, case.dtype, &config);
                        stage::times(&until, &time, bytes, bandwidth)
                    }
                    _ => vec![],
                };
                Ok((measured, stages))
            })
            .collect(),
    }
}

type Times = (Summary, Option<bool>, Vec<(Stage, Summary)>);

/// The time of the whole step, whether a graph was captured, and the times of its stages.
fn sample(setup: &Setup, prepared: &Prepared, sets: usize, mode: Mode) -> Result<Times> {
    let device = setup.device.open();
    let captured = |calls: &Calls| timing::captured(&device, calls, sets, &setup.pace);
    match mode {
        // No stages: the launch of an eager call would count towards a stage.
        Mode::Eager => {
            let time = timing::eager(&device, &prepared.whole, sets, &setup.pace)?;
            Ok((time, None, vec![]))
        }
        Mode::Captured => {
            let (time, hardware) = captured(&prepared.whole)?;
            let until = prepared.until.iter();
            let until = until.map(|(stage, calls)| Ok((*stage, captured(calls)?.0)));
            Ok((time, Some(hardware), until.collect::<Result<_>>()?))
        }
    }
}

fn row(case: &Case, implementation: &dyn Implementation, mode: Mode, result: Outcome) -> Row {
    let transfers = implementation.transfers(case);
    let (measured, skipped, stages) = match result {
        Ok((measured, stages)) => (Some(measured), None, stages),
        Err(why) => (None, Some(why), vec![]),
    };
    Row {
        shape: case.shape,
        dtype: case.dtype,
        method: implementation.method(),
        mode,
        settings: implementation.settings(),
        layers: implementation.layers(),
        elements: transfers.elements,
        bytes: transfers.bytes(),
        measured,
        skipped,
        stages,
    }
}

/// Sets the speedup of each row of a case over dense attention in the same mode.
fn relate_to_dense(rows: &mut [Row]) {
    let dense: Vec<(Mode, f64)> = rows
        .iter()
        .filter(|row| row.method == MethodName::Dense)
        .filter_map(|row| Some((row.mode, row.median_us()?)))
        .collect();
    for row in rows {
        let of_mode = dense.iter().find(|(mode, _)| *mode == row.mode);
        if let (Some((_, dense)), Some(measured)) = (of_mode, &mut row.measured) {
            measured.speedup_over_dense = Some(dense / measured.time.median_us);
        }
    }
}
