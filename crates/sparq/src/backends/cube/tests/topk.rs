//! Top-k by itself, on every path that it can take.

use burn::tensor::{Device, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::devices;
use crate::backends::cube::launch::Launcher;
use crate::backends::cube::parts::topk::{TopKBlueprint, empty_counts, select_top_k};
use crate::backends::cube::parts::topk_memory::{MemoryTopKBlueprint, select_top_k_in_memory};

/// Selects among `scores` [units, count] in one cube. Writes the numbers of the selected scores to
/// `numbers`, and how many they are behind `room` of them.
#[cube(launch_unchecked)]
fn top_k_kernel(scores: &[f32], numbers: &mut [u32], top: f32, #[comptime] plan: TopKBlueprint) {
    let count = comptime!(plan.count);
    let mut own = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        own[i] = scores[UNIT_POS as usize * count + i];
    }
    let selection = select_top_k(&own, top, empty_counts(plan), plan);
    let mut slot = selection.first as usize;
    #[unroll]
    for i in 0..count {
        if selection.contains(i) {
            numbers[slot] = UNIT_POS * comptime!(count as u32) + comptime!(i as u32);
            slot += 1;
        }
    }
    if UNIT_POS == 0 {
        numbers[comptime!(plan.room)] = selection.total;
    }
}

#[cube(launch_unchecked)]
fn top_k_in_memory_kernel(
    scores: &[Vector<f32, Const<4>>],
    numbers: &mut [u32],
    count: u32,
    #[comptime] plan: MemoryTopKBlueprint,
) {
    let mut selected = Shared::<[u32]>::new_slice(comptime!(plan.needed));
    select_top_k_in_memory(scores, 0usize, count as usize, &mut selected, 0usize, plan);
    let mut i = UNIT_POS as usize;
    while i < plan.needed {
        numbers[i] = selected[i];
        i += comptime!(plan.units as usize);
    }
}

fn buffer(values: &[f32], device: &Device) -> CubeTensor {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::<1>::from_data(data, device)
        .try_into_primitive::<CubeBackend>()
        .unwrap()
}

/// Asserts that at least `needed` scores are selected, each once, and that none left out is larger.
fn check(scores: &[f32], selected: &[u32], needed: usize, case: &str) {
    let some = scores.iter().filter(|&&score| score > f32::NEG_INFINITY);
    let needed = needed.min(some.count());
    assert!(
        selected.len() >= needed,
        "{case}: {} of {needed} selected",
        selected.len()
    );
    let mut marks = vec![false; scores.len()];
    for &number in selected {
        assert!(
            !marks[number as usize],
            "{case}: score {number} was selected twice"
        );
        marks[number as usize] = true;
    }
    let of = |mark: bool| scores.iter().zip(&marks).filter(move |(_, m)| **m == mark);
    let least = of(true)
        .map(|(score, _)| *score)
        .fold(f32::INFINITY, f32::min);
    let most = of(false)
        .map(|(score, _)| *score)
        .fold(f32::NEG_INFINITY, f32::max);
    assert!(
        least > f32::NEG_INFINITY && least >= most,
        "{case}: {least} selected, {most} left out"
    );
}

/// Returns scores whose histograms have their crowded bins in different places.
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
fn every_path_selects_the_k_largest() {
    for device in devices() {
        let probe = buffer(&[0.0], &device);
        let launcher = Launcher::new(&probe);
        let units = launcher.info.units(128);
        for (count, needed, room, probabilities) in [
            (8, 1, 8, 0),
            (8, 97, 164, 0),
            (8, 97, 97, 0),
            (16, 60, 124, 4),
            (8, 97, 97, 8),
            (40, 300, 364, 0),
            (4, 400, 464, 0),
        ] {
            let plan = TopKBlueprint {
                count,
                needed,
                room,
                probabilities,
                units,
                plane: launcher.info.plane,
            };
            for (name, scores) in inputs(count * units as usize, probabilities > 0) {
                let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let numbers = buffer(&vec![0.0; room + 1], &device);
                unsafe {
                    top_k_kernel::launch_unchecked(
                        &launcher.client,
                        CubeCount::Static(1, 1, 1),
                        CubeDim::new_1d(units),
                        buffer(&scores, &device).into_buffer_arg(),
                        numbers.clone().into_buffer_arg(),
                        top,
                        plan,
                    );
                }
                let bits = launcher.client.read_one(numbers.handle).unwrap();
                let words: Vec<u32> = bits
                    .chunks_exact(4)
                    .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
                    .collect();
                let total = words[room] as usize;
                let case = format!("{device:?} {name} {plan:?}");
                assert!(total <= room, "{case}: {total} selected");
                check(&scores, &words[..total], needed, &case);
            }
        }
    }
}

#[test]
fn in_memory_selects_the_k_largest() {
    const NEEDED: usize = 700;
    for device in devices() {
        let launcher = Launcher::new(&buffer(&[0.0], &device));
        let units = launcher.info.units(256);
        for (name, scores) in inputs(70000, false) {
            let numbers = buffer(&vec![0.0; NEEDED], &device);
            unsafe {
                top_k_in_memory_kernel::launch_unchecked(
                    &launcher.client,
                    CubeCount::Static(1, 1, 1),
                    CubeDim::new_1d(units),
                    buffer(&scores, &device).into_buffer_arg(),
                    numbers.clone().into_buffer_arg(),
                    scores.len() as u32,
                    MemoryTopKBlueprint {
                        needed: NEEDED,
                        units,
                        plane: launcher.info.plane,
                    },
                );
            }
            let bits = launcher.client.read_one(numbers.handle).unwrap();
            // The memory of a buffer may be larger than its contents.
            let selected: Vec<u32> = bits
                .chunks_exact(4)
                .take(NEEDED)
                .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
                .collect();
            check(&scores, &selected, NEEDED, &format!("{device:?} {name}"));
        }
    }
}
