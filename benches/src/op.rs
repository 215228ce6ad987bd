//! One decode step of attention on one device: dense and SparQ, eager and captured.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;

use crate::bandwidth::{self, Bandwidth};
use crate::buffers::{Room, Source};
use crate::contender::{self, Contender};
use crate::preset::Case;
use crate::report::{Measured, Row, Run};
use crate::table::bytes;
use crate::timing::{self, Mode, Pace};
use sparq_host::device::DeviceChoice;

/// What is the same for all cases of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The device.
    pub device: DeviceChoice,
    /// Its memory and cache.
    pub room: Room,
    /// How long to measure.
    pub pace: Pace,
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
    let modes: &[Mode] = match setup.device.is_gpu() {
        true => &[Mode::Eager, Mode::Captured],
        false => &[Mode::Eager],
    };
    let source_bytes = case.shape.kv_bytes(case.dtype);
    // One more set has to fit beside the source, and the conversion of random numbers takes as much.
    let source = match 2.0 * source_bytes > setup.room.memory {
        true => Err(no_room(2.0 * source_bytes, &setup.room)),
        false => guarded(|| Ok(Source::new(case, &setup.device.open()))),
    };
    let mut rows: Vec<Row> = Vec::new();
    for contender in contender::all(case) {
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
#[derive(Clone, Copy)]
struct Raw {
    time: crate::stats::Summary,
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
        Some(sets) => guarded(|| Ok((contender.prepare(source, sets)?, sets))),
    };
    let (calls, sets) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return vec![Err(why); modes.len()],
    };
    let working_set = sets as f64 * read;
    modes
        .iter()
        .map(|mode| {
            guarded(|| {
                let (time, hardware_graph) = match mode {
                    Mode::Eager => (timing::eager(&device, &calls, sets, &setup.pace)?, None),
                    Mode::Captured => {
                        let (time, hardware) =
                            timing::captured(&device, &calls, sets, &setup.pace)?;
                        (time, Some(hardware))
                    }
                };
                Ok(Raw {
                    time,
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
    let (measured, skipped) = match result {
        Err(why) => (None, Some(why)),
        Ok(raw) => {
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
            (Some(measured), None)
        }
    };
    Row {
        shape: case.shape,
        dtype: case.dtype,
        method: contender.method(),
        stage: contender.stage(),
        mode,
        settings: contender.settings(),
        elements: transfers.elements,
        bytes: transfers.bytes(),
        measured,
        skipped,
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

/// What `f` returns, an error or a panic of a backend as text: it must not cost the rows before it.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(panic) => Err(format!("panicked: {}", panic_message(panic.as_ref()))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_text() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        let failed: Result<(), String> = guarded(|| anyhow::bail!("no"));
        assert_eq!(failed, Err("no".into()));
        let panicked: Result<(), String> = guarded(|| panic!("at {}", 7));
        assert_eq!(panicked, Err("panicked: at 7".into()));
    }
}
