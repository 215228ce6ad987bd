//! Stage 1 for 4-bit codes with matrix units: sixteen positions by sixteen components in one
//! instruction, for four heads at once.
//!
//! The codes are the rows of A and the weights are the columns of B, both in half precision. The
//! sums are in single precision.
//! - A code n in the lowest bits of a half is the subnormal number n 2^-24, and 4 bits further up
//!   it is n 2^-20. Both are exact, so that unpacking two codes takes one mask.
//! - A weight is split into two halves in neighbouring columns, which have 22 bits together.
//!   Weights are scaled by a power of two so that both halves are normal numbers.
//!
//! Lane l of `mma.m16n8k16` holds
//! - rows l / 4 and l / 4 + 8 of A and of the result;
//! - components 2 (l % 4), its neighbour, and both again 8 further on;
//! - column l / 4 of B, and columns 2 (l % 4) and its neighbour of the result.
//!
//! The kernel is free to map components and positions to these. A lane loads words of 8 positions
//! for its components, and its two rows are two neighbours in a word. If one query is scored, four
//! products of four pairs of neighbours fill one result: each has its weights in two columns of its
//! own and zeros elsewhere. If a group is scored, the columns are its heads.

use burn::tensor::f16;
use cubecl::cmma::MmaDefinition;
use cubecl::ir::{ElemType, FloatKind, features::MmaConfig};
use cubecl::prelude::*;

use super::logits::{SketchBlueprint, SketchTile};
use super::query::Query;
use super::reduce::sum_in_plane;
use super::score::LARGEST_SCORE;

/// Consecutive positions of a lane.
pub(crate) const RUN: usize = 2;
/// Heads of a product.
pub(crate) const HEADS: usize = 4;
/// Rounds of vectors that are loaded before the first is used, if a group is scored.
const ROUNDS_AT_ONCE: usize = 1;
/// Components of a product.
const DEPTH: usize = 16;

/// The instruction that a device has to support.
pub(crate) const PRODUCT: MmaConfig = MmaConfig {
    a_type: ElemType::Float(FloatKind::F16),
    b_type: ElemType::Float(FloatKind::F16),
    cd_type: ElemType::Float(FloatKind::F32),
    m: 16,
    n: 8,
    k: 16,
};
/// Units of a plane on such a device.
pub(crate) const PLANE: u32 = 32;

/// See [`run_starts`](super::logits::run_starts).
#[cube]
pub(crate) fn run_starts(starts: &mut Array<u32>, #[comptime] plan: SketchBlueprint) {
    let (quad, member) = (UNIT_POS_PLANE / 4, UNIT_POS_PLANE % 4);
    #[unroll]
    for v in 0..comptime!(plan.vectors) {
        #[unroll]
        for w in 0..comptime!(plan.vector) {
            let word =
                (vector_of(v, plan) + quad) * comptime!(plan.vector as u32) + comptime!(w as u32);
            starts[comptime!(v * plan.vector + w)] = word * 8u32 + 2u32 * member;
        }
    }
}

/// Returns the first of this plane's eight vectors in round `v`, relative to the tile's first.
#[cube]
fn vector_of(#[comptime] v: usize, #[comptime] plan: SketchBlueprint) -> u32 {
    let planes = comptime!(plan.query.units / PLANE);
    (comptime!(v as u32 * planes) + PLANE_POS) * 8u32
}

/// The matrix B of a plane: weights in half precision.
#[derive(CubeType)]
pub(crate) struct Fragments {
    /// Two pairs of halves for every sixteen components.
    pairs: Array<u32>,
    /// The factor that undoes the scaling of the weights, applied after that of the codes.
    unscale: f32,
}

/// Splits the weights of the heads from `head` on, or of the only query, into halves. A weight that
/// is not finite makes all logits 0.
#[cube]
pub(crate) fn fragments(
    weights: &Shared<[f32]>,
    head: usize,
    #[comptime] plan: SketchBlueprint,
) -> Fragments {
    let rank = comptime!(plan.query.rank);
    let heads = comptime!(plan.query.heads());
    let mut norm = 0.0f32;
    let mut i = UNIT_POS_PLANE as usize;
    while i < comptime!(rank * heads) {
        norm += weights[i].abs();
        i += comptime!(PLANE as usize);
    }
    // The sum of the magnitudes, which bounds every weight, is scaled into [2^14, 2^15).
    let exponent = u32::reinterpret(sum_in_plane(norm, PLANE)) >> 23u32;
    let is_finite = exponent < 255u32;
    let field = min(268u32 - exponent, 253u32);
    let scale = f32::reinterpret(field << 23u32);
    let unscale = f32::reinterpret((254u32 - field) << 23u32);

    let quad = UNIT_POS_PLANE as usize / 4;
    let member = UNIT_POS_PLANE as usize % 4;
    let mut head = head;
    if comptime!(heads > 1) {
        head += quad / 2;
    }
    let is_lower = quad % 2 == 1;
    let blocks = comptime!(rank.div_ceil(DEPTH));
    let mut pairs = Array::<u32>::new(comptime!(2 * blocks));
    #[unroll]
    for pair in 0..comptime!(2 * blocks) {
        let mut halves = Vector::<f16, Const<2>>::new(f16::new(0.0));
        #[unroll]
        for j in 0..2usize {
            let i = comptime!(pair * 8 + j) + member * 2;
            let mut weight = 0.0f32;
            if is_finite && i < rank && head < heads {
                weight = weights[i * heads + head] * scale;
            }
            let upper = f16::cast_from(weight);
            let lower = f16::cast_from(weight - f32::cast_from(upper));
            halves.insert(j, select(is_lower, lower, upper));
        }
        pairs[pair] = u32::reinterpret(halves);
    }
    Fragments { pairs, unscale }
}

/// Loads this lane's four vectors of sixteen components from 16 `block` on. `after` is 0.
#[cube]
fn load<K: Numeric, N: Size>(
    loaded: &mut Array<Vector<K, N>>,
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    after: usize,
    #[comptime] v: usize,
    #[comptime] block: usize,
    #[comptime] plan: SketchBlueprint,
) {
    let rank = comptime!(plan.query.rank);
    let quad = UNIT_POS_PLANE as usize / 4;
    let member = UNIT_POS_PLANE as usize % 4;
    let vector = min(tile.first + vector_of(v, plan) as usize + quad, tile.last) + after;
    #[unroll]
    for x in 0..4usize {
        let first = comptime!(block * DEPTH + (x / 2) * 8 + x % 2);
        // Past the last component, the last one is read again; its weights there are 0.
        if comptime!(first < rank) {
            let i = if comptime!(first + 6 < rank) {
                first + member * 2
            } else {
                min(first + member * 2, comptime!(rank - 1).runtime())
            };
            let at = tile.base + query.selected[i] as usize * tile.stride + vector;
            loaded[comptime!(block * 4 + x)] = tile.elements[at];
        } else {
            loaded[comptime!(block * 4 + x)] = Vector::new(K::from_int(0));
        }
    }
}

/// Returns pair `part`, of four, of neighbouring codes of two components' words, in two halves. The
/// lower neighbour is in bits 0 to 3 and the upper in bits 4 to 7.
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

/// Adds the product of two rows of codes and of the weights `b0`, `b1` to the four sums from `at`
/// on.
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

/// Returns the scores of this unit's positions for one query, [count].
#[cube]
pub(crate) fn scores<K: Numeric, N: Size>(
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    weights: &Fragments,
    #[comptime] plan: SketchBlueprint,
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
            load::<K, N>(&mut loaded, tile, query, 0usize, v, block, plan);
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

/// Writes the logits of this lane's head, number `UNIT_POS_PLANE % 4` of four, at the positions of
/// all words that the lane loads: [rounds, words, 8], to `logits` from `to` on.
#[cube]
pub(crate) fn logits<K: Numeric, N: Size>(
    logits: &mut Array<f32>,
    #[comptime] to: usize,
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    weights: &Fragments,
    #[comptime] plan: SketchBlueprint,
) {
    let words = comptime!(plan.vector);
    let blocks = comptime!(plan.query.rank.div_ceil(DEPTH));
    // Always 0, which the compiler cannot know.
    let zero = query.selected[0] >> 31u32;
    let mut done = Array::<u32>::new(comptime!(plan.vectors));
    #[unroll]
    for v in 0..comptime!(plan.vectors) {
        // Loads depend on the logits of an earlier round. Otherwise the compiler loads all rounds
        // at once, and the registers that this takes reduce the number of cubes in flight.
        let mut after = 0usize;
        if comptime!(v >= ROUNDS_AT_ONCE) {
            after = (done[comptime!(v.saturating_sub(ROUNDS_AT_ONCE))] & zero) as usize;
        }
        let mut loaded = Array::<Vector<K, N>>::new(comptime!(4 * blocks));
        #[unroll]
        for block in 0..blocks {
            load::<K, N>(&mut loaded, tile, query, after, v, block, plan);
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
                // Depends on every logit, so that the compiler does not keep the sums instead.
                all |= u32::reinterpret(logit);
            }
        }
        done[v] = all;
    }
}

/// Returns pair `part` of the codes of word `w`, for both pairs of this lane's components.
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

/// Returns the logit of row `j` of two from the four sums from `at` on: it adds the products of
/// both halves of the weights.
#[cube]
fn logit(sums: &Array<f32>, unscale: f32, #[comptime] at: usize, #[comptime] j: usize) -> f32 {
    let sum = sums[comptime!(at + 2 * j)] + sums[comptime!(at + 2 * j + 1)];
    // Two multiplications: neither overflows unless the logit does.
    let unit = comptime!(if j == 0 { 16777216.0 } else { 1048576.0 });
    clamp(sum * unit * unscale, -LARGEST_SCORE, LARGEST_SCORE)
}

/// Sums values [words, 8] over the four lanes that hold the same positions of four heads. Each lane
/// receives the sums of its own runs, [words, 2].
#[cube]
pub(crate) fn sum_over_heads(values: &Array<f32>, #[comptime] words: usize) -> Array<f32> {
    let upper = UNIT_POS_PLANE & 2u32 != 0u32;
    let odd = UNIT_POS_PLANE & 1u32 != 0u32;
    let mut sums = Array::<f32>::new(comptime!(RUN * words));
    #[unroll]
    for w in 0..words {
        // Each half of the lanes keeps the half of the positions that contains its own, and sends
        // the other half.
        let mut half = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            let (low, high) = (
                values[comptime!(8 * w + i)],
                values[comptime!(8 * w + 4 + i)],
            );
            let received = plane_shuffle_xor(select(upper, low, high), 2u32);
            half[i] = select(upper, high, low) + received;
        }
        #[unroll]
        for j in 0..RUN {
            let (low, high) = (half[j], half[comptime!(RUN + j)]);
            let received = plane_shuffle_xor(select(odd, low, high), 1u32);
            sums[comptime!(RUN * w + j)] = select(odd, high, low) + received;
        }
    }
    sums
}

/// Returns the largest value of the eight lanes that hold this lane's head.
#[cube]
pub(crate) fn max_over_quads(value: f32) -> f32 {
    let mut largest = value;
    #[unroll]
    for i in 2..5usize {
        largest = max(largest, plane_shuffle_xor(largest, comptime!(1u32 << i)));
    }
    largest
}

/// Sums over the eight lanes that hold this lane's head.
#[cube]
pub(crate) fn sum_over_quads(value: f32) -> f32 {
    let mut sum = value;
    #[unroll]
    for i in 2..5usize {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << i));
    }
    sum
}

/// Computes e^x with the device's instruction for 2^x, which is within 2 units in the last place.
/// It takes fewer instructions than the portable function.
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
