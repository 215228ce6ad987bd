//! Step 3 for 4-bit codes by matrix units: sixteen positions times sixteen components in one instruction, for four heads at once.
//!
//! A product takes codes as the rows of A and weights as the columns of B, both in half precision, and adds in single precision:
//! - A code n in the lowest bits of a half is the subnormal number n 2^-24, and 4 bits further up n 2^-20, both exact: to unpack two codes is one mask.
//! - A weight is split into two halves, which have 22 bits together, in two neighbouring columns. Weights are scaled by a power of two so that both are normal.
//!
//! Of `mma.m16n8k16`, lane l holds rows l / 4 and l / 4 + 8 of A and of the result, components 2 (l % 4) and its neighbour and both again 8 further on, column l / 4 of
//! B, and columns 2 (l % 4) and its neighbour of the result. Which component and which position a number belongs to is ours to say. A lane loads
//! words of 8 positions for its components; the two rows are two neighbours in a word. Where one query is scored, four products, of four pairs of
//! neighbours, fill one result: each has its weights in two columns of its own and zeros elsewhere. Where a group is, the columns are heads.

use burn::tensor::f16;
use cubecl::cmma::MmaDefinition;
use cubecl::ir::{ElemType, FloatKind, features::MmaConfig};
use cubecl::prelude::*;

use super::common::*;
use super::logits::{SketchPlan, TilePlace};

/// Consecutive positions of a lane.
pub(crate) const RUN: usize = 2;
/// Heads of a product.
pub(crate) const HEADS: usize = 4;
/// Rounds of vectors that are loaded before the first is used, where a group is scored.
const ROUNDS_AT_ONCE: usize = 1;
/// Components of a product.
const DEPTH: usize = 16;

/// What a device has to offer.
pub(crate) const PRODUCT: MmaConfig = MmaConfig {
    a_type: ElemType::Float(FloatKind::F16),
    b_type: ElemType::Float(FloatKind::F16),
    cd_type: ElemType::Float(FloatKind::F32),
    m: 16,
    n: 8,
    k: 16,
};
/// Units of a plane, on such a device.
pub(crate) const PLANE: u32 = 32;

/// See [`logits`](super::logits::runs_of).
#[cube]
pub(crate) fn runs_of(runs: &mut Array<u32>, #[comptime] plan: SketchPlan) {
    let (quad, member) = (UNIT_POS_PLANE / 4, UNIT_POS_PLANE % 4);
    #[unroll]
    for v in 0..comptime!(plan.vectors) {
        #[unroll]
        for w in 0..comptime!(plan.vector) {
            let word =
                (vector_of(v, plan) + quad) * comptime!(plan.vector as u32) + comptime!(w as u32);
            runs[comptime!(v * plan.vector + w)] = word * 8u32 + 2u32 * member;
        }
    }
}

/// The first vector of this plane's eight in round `v`, relative to the tile's first.
#[cube]
fn vector_of(#[comptime] v: usize, #[comptime] plan: SketchPlan) -> u32 {
    let planes = comptime!(plan.query.units / PLANE);
    (comptime!(v as u32 * planes) + PLANE_POS) * 8u32
}

/// The weights of a plane's products.
#[derive(CubeType)]
pub(crate) struct Fragments {
    /// Two pairs of halves for every sixteen components.
    pairs: Array<u32>,
    /// What sums are to be multiplied by, after 2^24.
    unscale: f32,
}

/// The weights of the heads from `head` on, or of the only one. Those that are not finite make all logits 0.
#[cube]
pub(crate) fn fragments(
    weights: &Shared<[f32]>,
    head: usize,
    #[comptime] plan: SketchPlan,
) -> Fragments {
    let rank = comptime!(plan.query.rank);
    let heads = comptime!(plan.query.heads());
    let mut reach = 0.0f32;
    let mut i = UNIT_POS_PLANE as usize;
    while i < comptime!(rank * heads) {
        reach += weights[i].abs();
        i += comptime!(PLANE as usize);
    }
    // No weight is larger than their sum: it comes to 2^14 at most, and less than 2^15.
    let exponent = u32::reinterpret(sum_in_plane(reach, PLANE)) >> 23u32;
    let sane = exponent < 255u32;
    let field = min(268u32 - exponent, 253u32);
    let scale = f32::reinterpret(field << 23u32);
    let unscale = f32::reinterpret((254u32 - field) << 23u32);

    let quad = UNIT_POS_PLANE as usize / 4;
    let member = UNIT_POS_PLANE as usize % 4;
    let mut head = head;
    if comptime!(heads > 1) {
        head += quad / 2;
    }
    let rest = quad % 2 == 1;
    let blocks = comptime!(rank.div_ceil(DEPTH));
    let mut pairs = Array::<u32>::new(comptime!(2 * blocks));
    #[unroll]
    for pair in 0..comptime!(2 * blocks) {
        let mut halves = Vector::<f16, Const<2>>::new(f16::new(0.0));
        #[unroll]
        for j in 0..2usize {
            let i = comptime!(pair * 8 + j) + member * 2;
            let mut weight = 0.0f32;
            if sane && i < rank && head < heads {
                weight = weights[i * heads + head] * scale;
            }
            let upper = f16::cast_from(weight);
            let lower = f16::cast_from(weight - f32::cast_from(upper));
            halves.insert(j, select(rest, lower, upper));
        }
        pairs[pair] = u32::reinterpret(halves);
    }
    Fragments { pairs, unscale }
}

/// Loads, of sixteen components from 16 `block` on, those of this lane: four vectors. `after` is 0.
#[cube]
fn load<K: Numeric, N: Size>(
    loaded: &mut Array<Vector<K, N>>,
    sketch: &[Vector<K, N>],
    place: &TilePlace,
    selected: &Shared<[u32]>,
    after: usize,
    #[comptime] v: usize,
    #[comptime] block: usize,
    #[comptime] plan: SketchPlan,
) {
    let rank = comptime!(plan.query.rank);
    let quad = UNIT_POS_PLANE as usize / 4;
    let member = UNIT_POS_PLANE as usize % 4;
    let vector = min(place.first + vector_of(v, plan) as usize + quad, place.last) + after;
    #[unroll]
    for x in 0..4usize {
        let first = comptime!(block * DEPTH + (x / 2) * 8 + x % 2);
        // Past the last component, whose weights are 0, it is read once more.
        if comptime!(first < rank) {
            let i = if comptime!(first + 6 < rank) {
                first + member * 2
            } else {
                min(first + member * 2, comptime!(rank - 1).runtime())
            };
            let at = place.base + selected[i] as usize * place.stride + vector;
            loaded[comptime!(block * 4 + x)] = sketch[at];
        } else {
            loaded[comptime!(block * 4 + x)] = Vector::new(K::from_int(0));
        }
    }
}

/// The codes at `part`, of four, of two components' words in halves: of the lower of two neighbours in bits 0 to 3, of the upper in bits 4 to 7.
#[cube]
fn halves_of(low: u32, high: u32, #[comptime] part: usize) -> u32 {
    let both = if comptime!(part < 2) {
        (low & 0xFFFFu32) | (high << 16u32)
    } else {
        (low >> 16u32) | (high & 0xFFFF_0000u32)
    };
    if comptime!(part % 2 == 1) {
        both >> 8u32
    } else {
        both
    }
}

/// Adds the product of two rows of codes and of the weights `b0`, `b1` to the four numbers from `at` on.
#[cube]
fn multiply(
    sums: &mut Array<f32>,
    first: u32,
    second: u32,
    b0: u32,
    b1: u32,
    #[comptime] at: usize,
) {
    let product = MmaDefinition::<f16, f16, f32>::new(16usize, 8usize, DEPTH);
    let mut a = Array::<Vector<f16, Const<2>>>::new(4usize);
    a[0] = Vector::reinterpret(first & 0x000F_000Fu32);
    a[1] = Vector::reinterpret(first & 0x00F0_00F0u32);
    a[2] = Vector::reinterpret(second & 0x000F_000Fu32);
    a[3] = Vector::reinterpret(second & 0x00F0_00F0u32);
    let mut b = Array::<Vector<f16, Const<2>>>::new(2usize);
    b[0] = Vector::reinterpret(b0);
    b[1] = Vector::reinterpret(b1);
    let mut c = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for x in 0..2usize {
        let mut two = Vector::<f32, Const<2>>::new(0.0f32);
        two.insert(0usize, sums[comptime!(at + 2 * x)]);
        two.insert(1usize, sums[comptime!(at + 2 * x + 1)]);
        c[x] = two;
    }
    let d = product.execute(&a, &b, &c);
    #[unroll]
    for x in 0..2usize {
        sums[comptime!(at + 2 * x)] = d[x].extract(0usize);
        sums[comptime!(at + 2 * x + 1)] = d[x].extract(1usize);
    }
}

/// The scores of all positions of this unit where one query is scored, [count].
#[cube]
pub(crate) fn scores<K: Numeric, N: Size>(
    sketch: &[Vector<K, N>],
    place: &TilePlace,
    selected: &Shared<[u32]>,
    weights: &Fragments,
    #[comptime] plan: SketchPlan,
) -> Array<f32> {
    let words = comptime!(plan.vector);
    let blocks = comptime!(plan.query.rank.div_ceil(DEPTH));
    let own = UNIT_POS_PLANE as usize / 8;
    let mut scores = Array::<f32>::new(comptime!(plan.count()));
    #[unroll]
    for v in 0..comptime!(plan.vectors) {
        let mut loaded = Array::<Vector<K, N>>::new(comptime!(4 * blocks));
        #[unroll]
        for block in 0..blocks {
            load::<K, N>(&mut loaded, sketch, place, selected, 0usize, v, block, plan);
        }
        let mut sums = Array::<f32>::new(comptime!(4 * words));
        #[unroll]
        for i in 0..comptime!(4 * words) {
            sums[i] = 0.0f32;
        }
        #[unroll]
        for block in 0..blocks {
            let whole = comptime!(block * DEPTH + 8 < plan.query.rank);
            #[unroll]
            for part in 0..4usize {
                let mine = own == part;
                let b0 = select(mine, weights.pairs[comptime!(2 * block)], 0u32);
                let b1 = select(mine, weights.pairs[comptime!(2 * block + 1)], 0u32);
                #[unroll]
                for w in 0..words {
                    let (first, second) = codes::<K, N>(&loaded, w, part, block, whole);
                    multiply(&mut sums, first, second, b0, b1, comptime!(4 * w));
                }
            }
        }
        #[unroll]
        for w in 0..words {
            #[unroll]
            for j in 0..RUN {
                scores[comptime!((v * words + w) * RUN + j)] =
                    logit(&sums, weights.unscale, comptime!(4 * w), j);
            }
        }
    }
    scores
}

/// The logits of this lane's head, the one at `UNIT_POS_PLANE % 4` of four, at the positions of all words that the lane loads: [rounds, words, 8], into `logits` from
/// `to` on.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn logits<K: Numeric, N: Size>(
    logits: &mut Array<f32>,
    #[comptime] to: usize,
    sketch: &[Vector<K, N>],
    place: &TilePlace,
    selected: &Shared<[u32]>,
    weights: &Fragments,
    #[comptime] plan: SketchPlan,
) {
    let words = comptime!(plan.vector);
    let blocks = comptime!(plan.query.rank.div_ceil(DEPTH));
    // 0, which the compiler can't know.
    let nothing = selected[0] >> 31u32;
    let mut done = Array::<u32>::new(comptime!(plan.vectors));
    #[unroll]
    for v in 0..comptime!(plan.vectors) {
        // Loads wait for the logits of an earlier round: left to itself, the compiler asks for all rounds at once, in registers for which fewer cubes run.
        let mut after = 0usize;
        if comptime!(v >= ROUNDS_AT_ONCE) {
            after = (done[comptime!(v.saturating_sub(ROUNDS_AT_ONCE))] & nothing) as usize;
        }
        let mut loaded = Array::<Vector<K, N>>::new(comptime!(4 * blocks));
        #[unroll]
        for block in 0..blocks {
            load::<K, N>(&mut loaded, sketch, place, selected, after, v, block, plan);
        }
        let mut sums = Array::<f32>::new(comptime!(16 * words));
        #[unroll]
        for i in 0..comptime!(16 * words) {
            sums[i] = 0.0f32;
        }
        #[unroll]
        for block in 0..blocks {
            let whole = comptime!(block * DEPTH + 8 < plan.query.rank);
            let b0 = weights.pairs[comptime!(2 * block)];
            let b1 = weights.pairs[comptime!(2 * block + 1)];
            #[unroll]
            for part in 0..4usize {
                #[unroll]
                for w in 0..words {
                    let (first, second) = codes::<K, N>(&loaded, w, part, block, whole);
                    let at = comptime!(4 * (4 * w + part));
                    multiply(&mut sums, first, second, b0, b1, at);
                }
            }
        }
        let mut all = 0u32;
        #[unroll]
        for x in 0..comptime!(4 * words) {
            #[unroll]
            for j in 0..RUN {
                let logit = logit(&sums, weights.unscale, comptime!(4 * x), j);
                logits[comptime!(to + v * 8 * words + x * RUN + j)] = logit;
                // Of all of them, so that their sums are not kept instead.
                all |= u32::reinterpret(logit);
            }
        }
        done[v] = all;
    }
}

/// The codes of word `w` at `part` in both pairs of this lane's components.
#[cube]
fn codes<K: Numeric, N: Size>(
    loaded: &Array<Vector<K, N>>,
    #[comptime] w: usize,
    #[comptime] part: usize,
    #[comptime] block: usize,
    #[comptime] whole: bool,
) -> (u32, u32) {
    let first = halves_of(
        u32::cast_from(loaded[comptime!(4 * block)].extract(w)),
        u32::cast_from(loaded[comptime!(4 * block + 1)].extract(w)),
        part,
    );
    let mut second = 0u32.runtime();
    if comptime!(whole) {
        second = halves_of(
            u32::cast_from(loaded[comptime!(4 * block + 2)].extract(w)),
            u32::cast_from(loaded[comptime!(4 * block + 3)].extract(w)),
            part,
        );
    }
    (first, second)
}

/// The logit of row `j` of two, from the four numbers from `at` on: the sum of what both parts of the weights gave.
#[cube]
fn logit(sums: &Array<f32>, unscale: f32, #[comptime] at: usize, #[comptime] j: usize) -> f32 {
    let sum = sums[comptime!(at + 2 * j)] + sums[comptime!(at + 2 * j + 1)];
    // In two steps, neither of which leaves the range of numbers where the logit does not.
    let unit = comptime!(if j == 0 { 16777216.0 } else { 1048576.0 });
    clamp(sum * unit * unscale, -LARGEST, LARGEST)
}

/// Sums [words, 8] over the four lanes that hold the same positions of four heads: leaves each with its own runs, [words, 2].
#[cube]
pub(crate) fn sum_of_heads(values: &Array<f32>, #[comptime] words: usize) -> Array<f32> {
    let upper = UNIT_POS_PLANE & 2u32 != 0u32;
    let odd = UNIT_POS_PLANE & 1u32 != 0u32;
    let mut sums = Array::<f32>::new(comptime!(RUN * words));
    #[unroll]
    for w in 0..words {
        // Each half of the lanes keeps the half of the positions that holds its own, and gives the other away.
        let mut half = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            let (low, high) = (
                values[comptime!(8 * w + i)],
                values[comptime!(8 * w + 4 + i)],
            );
            let given = plane_shuffle_xor(select(upper, low, high), 2u32);
            half[i] = select(upper, high, low) + given;
        }
        #[unroll]
        for j in 0..RUN {
            let (low, high) = (half[j], half[comptime!(RUN + j)]);
            let given = plane_shuffle_xor(select(odd, low, high), 1u32);
            sums[comptime!(RUN * w + j)] = select(odd, high, low) + given;
        }
    }
    sums
}

/// The largest of the values of the eight lanes with this one's head.
#[cube]
pub(crate) fn largest_of_quads(value: f32) -> f32 {
    let mut largest = value;
    #[unroll]
    for i in 2..5usize {
        largest = max(largest, plane_shuffle_xor(largest, comptime!(1u32 << i)));
    }
    largest
}

/// The sum of the values of the eight lanes with this one's head.
#[cube]
pub(crate) fn sum_of_quads(value: f32) -> f32 {
    let mut sum = value;
    #[unroll]
    for i in 2..5usize {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << i));
    }
    sum
}

/// e^x by the unit for powers of two, within 2 units in the last place of them: in fewer instructions than the function for all devices has.
#[cube]
pub(crate) fn exp(x: f32) -> f32 {
    let scaled = x * std::f32::consts::LOG2_E;
    let power: f32;
    gpu_asm!(
        "ex2.approx.ftz.f32 {p}, {x};",
        p = out(_) power, x = in(_) scaled, options(nomem),
    );
    power
}
