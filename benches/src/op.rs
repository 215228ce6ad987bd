//! One decode step of attention on one device: dense and SparQ, eager and captured.

use anyhow::Result;

use crate::bandwidth::{self, Bandwidth};
use crate::buffers::{Room, Source};
use crate::contender::{self, Calls, Contender};
use crate::guard::guarded;
use crate::preset::{Case, Scope};
use crate::report::{Measured, Row, Run};
use crate::stage::{self, Stage};
use crate::stats::Summary;
use crate::table::bytes;
use crate::timing::{self, Mode, Pace};
use sparq_device::DeviceChoice;

/// What is the same for all cases of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache.
    pub room: Room,
    /// How long to measure.
    pub pace: Pace,
    /// What to measure.
    pub scope: Scope,
}

/// Measures the bandwidth and then every case, and tells `progress` of each case's rows.
///
/// What can't run on the device becomes a row that says why.
///
/// # Errors
/// When the device fails while its bandwidth is measured.
pub fn run(
    setup: &Setup,
    cases: &[Case],
    mut progress: impl FnMut(&Bandwidth, &[Row]),
) -> Result<Run> {
    let bandwidth = bandwidth::measure(&setup.device, &setup.room, &setup.pace)?;
    let mut rows = Vec::new();
    for case in cases {
        let of_case = measure_case(setup, &bandwidth, case);
        progress(&bandwidth, &of_case);
        rows.extend(of_case);
    }
    Ok(Run {
        device: setup.device.to_string(),
        gpu: setup.device.gpu_name(),
        cache_bytes: setup.room.cache as u64,
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
    // One more set has to fit beside the source, and the conversion of random numbers takes as much.
    let source = match 2.0 * source_bytes > setup.room.memory {
        true => Err(no_room(2.0 * source_bytes, &setup.room)),
        false => guarded(|| Ok(Source::new(case, &setup.device.open()))),
    };
    let mut rows: Vec<Row> = Vec::new();
    for contender in contender::all(case, &setup.scope) {
        let results = match &source {
            Ok(source) => measure(setup, case, contender.as_ref(), source, source_bytes, modes),
            Err(why) => vec![Err(why.clone()); modes.len()],
        };
        for (&mode, result) in modes.iter().zip(results) {
            rows.push(row(case, contender.as_ref(), mode, bandwidth, result));
        }
        // Buffers of the next size are not carved out of these.
        setup.device.open().memory_cleanup();
    }
    relate_to_dense(&mut rows);
    rows
}

/// A measurement before it is related to anything.
#[derive(Clone)]
struct Raw {
    time: Summary,
    /// Times of the calls that end after a stage.
    until: Vec<(Stage, Summary)>,
    sets: usize,
    working_set: f64,
    cold: bool,
    hardware_graph: Option<bool>,
}

/// A contender in each mode, or why not.
fn measure(
    setup: &Setup,
    case: &Case,
    contender: &dyn Contender,
    source: &Source,
    taken: f64,
    modes: &[Mode],
) -> Vec<Result<Raw, String>> {
    let device = setup.device.open();
    let read = contender.transfers(case).bytes();
    let size = contender.set_bytes(case);
    let prepared = match setup.room.sets(read, size, taken) {
        None => Err(no_room(size + taken, &setup.room)),
        Some(sets) => guarded(|| {
            let calls = contender.prepare(source, sets)?;
            (0..sets).try_for_each(|set| (calls.whole)(set).check())?;
            Ok((calls, sets))
        }),
    };
    let (calls, sets) = match prepared {
        Ok((calls, sets)) => (calls, sets),
        Err(why) => return vec![Err(why); modes.len()],
    };
    let working_set = sets as f64 * read;
    modes
        .iter()
        .map(|mode| {
            guarded(|| {
                let captured = |calls: &Calls| timing::captured(&device, calls, sets, &setup.pace);
                let (time, hardware_graph) = match mode {
                    Mode::Eager => (
                        timing::eager(&device, &calls.whole, sets, &setup.pace)?,
                        None,
                    ),
                    Mode::Captured => {
                        let (time, hardware) = captured(&calls.whole)?;
                        (time, Some(hardware))
                    }
                };
                // Call by call, the wait for a launch would be counted to a stage.
                let until = match mode {
                    Mode::Eager => vec![],
                    Mode::Captured => calls
                        .until
                        .iter()
                        .map(|(stage, calls)| Ok((*stage, captured(calls)?.0)))
                        .collect::<Result<_>>()?,
                };
                Ok(Raw {
                    time,
                    until,
                    sets,
                    working_set,
                    cold: setup.room.is_cold(working_set),
                    hardware_graph,
                })
            })
        })
        .collect()
}

fn row(
    case: &Case,
    contender: &dyn Contender,
    mode: Mode,
    bandwidth: &Bandwidth,
    result: Result<Raw, String>,
) -> Row {
    let transfers = contender.transfers(case);
    let settings = contender.settings();
    let (measured, skipped, stages) = match result {
        Err(why) => (None, Some(why), vec![]),
        Ok(raw) => {
            let stages = match &settings {
                Some(config) if !raw.until.is_empty() => stage::times(
                    &raw.until,
                    &raw.time,
                    |stage| stage.bytes(&case.shape, case.dtype, config),
                    bandwidth,
                ),
                _ => vec![],
            };
            let gb_per_s = transfers.bytes() / raw.time.median_us / 1e3;
            let measured = Measured {
                time: raw.time,
                gb_per_s,
                share_of_bandwidth: gb_per_s / bandwidth.reference_gb_per_s(),
                speedup_over_dense: None,
                buffer_sets: raw.sets,
                working_set_bytes: raw.working_set,
                cold: raw.cold,
                hardware_graph: raw.hardware_graph,
            };
            (Some(measured), None, stages)
        }
    };
    Row {
        shape: case.shape,
        dtype: case.dtype,
        method: contender.method(),
        mode,
        settings,
        elements: transfers.elements,
        bytes: transfers.bytes(),
        measured,
        skipped,
        stages,
    }
}

/// Fills in how the rows of one case compare with dense attention in the same mode.
fn relate_to_dense(rows: &mut [Row]) {
    let dense: Vec<(Mode, f64)> = rows
        .iter()
        .filter(|row| row.method == contender::MethodName::Dense)
        .filter_map(|row| Some((row.mode, row.median_us()?)))
        .collect();
    for row in rows {
        let of_mode = dense.iter().find(|(mode, _)| *mode == row.mode);
        if let (Some((_, dense)), Some(measured)) = (of_mode, &mut row.measured) {
            measured.speedup_over_dense = Some(dense / measured.time.median_us);
        }
    }
}

fn no_room(needed: f64, room: &Room) -> String {
    format!(
        "needs {}, of {} that it may take; raise --memory-gib where there is more",
        bytes(needed),
        bytes(room.memory)
    )
}
