//! The choice of the best by itself, on every path that it can take.

use burn::tensor::{Device, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::devices;
use crate::backends::cube::best::{BestPlan, empty_histogram, take_best};
use crate::backends::cube::launch::Launcher;
use crate::backends::cube::many::take_from_memory;

/// Marks by a cube: `scores` [units, count] -> `marks`, with a 1 for those that are taken, at the places that [`take_best`] gives them.
#[cube(launch_unchecked)]
fn take_kernel(scores: &[f32], places: &mut [u32], top: f32, #[comptime] plan: BestPlan) {
    let count = comptime!(plan.count);
    let mut own = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        own[i] = scores[UNIT_POS as usize * count + i];
    }
    let best = take_best(&own, top, empty_histogram(plan), plan);
    let mut slot = best.first as usize;
    #[unroll]
    for i in 0..count {
        if best.is_taken(i) {
            places[slot] = UNIT_POS * comptime!(count as u32) + comptime!(i as u32);
            slot += 1;
        }
    }
    if UNIT_POS == 0 {
        places[comptime!(plan.room)] = best.total;
    }
}

#[cube(launch_unchecked)]
fn take_many_kernel(
    scores: &[Vector<f32, Const<4>>],
    places: &mut [u32],
    count: u32,
    #[comptime] needed: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let mut kept = Shared::<[u32]>::new_slice(needed);
    take_from_memory(
        scores,
        0usize,
        count as usize,
        &mut kept,
        0usize,
        needed,
        units,
        plane,
    );
    let mut i = UNIT_POS as usize;
    while i < needed {
        places[i] = kept[i];
        i += comptime!(units as usize);
    }
}

fn buffer(values: &[f32], device: &Device) -> CubeTensor {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::<1>::from_data(data, device)
        .try_into_primitive::<CubeBackend>()
        .unwrap()
}

/// What was taken must be the `needed` best, of equal ones any, and everything better than anything left out.
fn judge(scores: &[f32], taken: &[u32], needed: usize, what: &str) {
    let some = scores.iter().filter(|&&score| score > f32::NEG_INFINITY);
    let needed = needed.min(some.count());
    assert!(
        taken.len() >= needed,
        "{what}: {} of {needed} taken",
        taken.len()
    );
    let mut marks = vec![false; scores.len()];
    for &place in taken {
        assert!(!marks[place as usize], "{what}: {place} was taken twice");
        marks[place as usize] = true;
    }
    let of = |mark: bool| scores.iter().zip(&marks).filter(move |(_, m)| **m == mark);
    let least = of(true)
        .map(|(score, _)| *score)
        .fold(f32::INFINITY, f32::min);
    let best = of(false)
        .map(|(score, _)| *score)
        .fold(f32::NEG_INFINITY, f32::max);
    assert!(
        least > f32::NEG_INFINITY && least >= best,
        "{what}: {least} taken, {best} left"
    );
}

/// Scores that crowd in one place or another.
fn inputs(len: usize, probabilities: bool) -> Vec<(&'static str, Vec<f32>)> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    let sign = if probabilities { 0.0 } else { 1.0 };
    let lowest = if probabilities { 0.0 } else { -f32::MAX };
    let mut all = vec![
        ("random", (0..len).map(|_| uniform() - 0.5 * sign).collect()),
        (
            "wide",
            (0..len).map(|_| (uniform() - 0.5 * sign) * 1e30).collect(),
        ),
        (
            "descending",
            (0..len).map(|i| 1.0 - i as f32 / len as f32).collect(),
        ),
        ("equal", vec![0.25; len]),
        ("lowest", vec![lowest; len]),
        (
            "few values",
            (0..len).map(|_| (uniform() * 5.0).floor()).collect(),
        ),
        ("close", (0..len).map(|_| 1.0 + uniform() * 1e-6).collect()),
        (
            "denormal",
            (0..len).map(|_| uniform() * 1e-38).collect::<Vec<f32>>(),
        ),
    ];
    let mut huge = vec![0.0; len];
    huge[len / 2] = f32::MAX;
    all.push(("one huge", huge));
    let few = |i: usize| {
        if i.is_multiple_of(97) {
            1.0
        } else {
            f32::NEG_INFINITY
        }
    };
    all.push(("few valid", (0..len).map(few).collect()));
    all
}

#[test]
fn the_best_are_taken_on_every_path() {
    for device in devices() {
        let probe = buffer(&[0.0], &device);
        let launcher = Launcher::new(&probe);
        let units = launcher.units(128);
        for (count, needed, room, probabilities) in [
            (8, 1, 8, 0),
            (8, 97, 164, 0),
            (8, 97, 97, 0),
            (16, 60, 124, 4),
            (8, 97, 97, 8),
            (40, 300, 364, 0),
            (4, 400, 464, 0),
        ] {
            let plan = BestPlan {
                count,
                needed,
                room,
                probabilities,
                units,
                plane: launcher.plane,
            };
            for (name, scores) in inputs(count * units as usize, probabilities > 0) {
                let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let places = buffer(&vec![0.0; room + 1], &device);
                unsafe {
                    take_kernel::launch_unchecked(
                        &launcher.client,
                        CubeCount::Static(1, 1, 1),
                        CubeDim::new_1d(units),
                        buffer(&scores, &device).into_buffer_arg(),
                        places.clone().into_buffer_arg(),
                        top,
                        plan,
                    );
                }
                let bits = launcher.client.read_one(places.handle).unwrap();
                let words: Vec<u32> = bits
                    .chunks_exact(4)
                    .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
                    .collect();
                let total = words[room] as usize;
                let what = format!("{device:?} {name} {plan:?}");
                assert!(total <= room, "{what}: {total} taken");
                judge(&scores, &words[..total], needed, &what);
            }
        }
    }
}

#[test]
fn the_best_are_taken_from_memory() {
    const NEEDED: usize = 700;
    for device in devices() {
        let launcher = Launcher::new(&buffer(&[0.0], &device));
        let units = launcher.units(256);
        for (name, scores) in inputs(70000, false) {
            let places = buffer(&vec![0.0; NEEDED], &device);
            unsafe {
                take_many_kernel::launch_unchecked(
                    &launcher.client,
                    CubeCount::Static(1, 1, 1),
                    CubeDim::new_1d(units),
                    buffer(&scores, &device).into_buffer_arg(),
                    places.clone().into_buffer_arg(),
                    scores.len() as u32,
                    NEEDED,
                    units,
                    launcher.plane,
                );
            }
            let bits = launcher.client.read_one(places.handle).unwrap();
            let taken: Vec<u32> = bits
                .chunks_exact(4)
                .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
                .collect();
            judge(&scores, &taken, NEEDED, &format!("{device:?} {name}"));
        }
    }
}
