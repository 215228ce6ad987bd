//! Online softmax: the exponential on vectors, and a state that merges.

use std::ops::Range;

use super::simd::Simd;

/// The maximum of a softmax before its first logit. With it, logits that are all -inf have weights
/// of 0 and not NaN.
pub(super) const LOWEST: f32 = -f32::MAX;

/// Returns e^x for x <= 0.
///
/// The relative error is at most (3 + |x|) / 10^7. The result is exactly 1 at 0, exactly 0 at and
/// below -104 (on some instruction sets -88), and NaN for NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // e^x = 2^n 2^f with an integer n and |f| <= 1/2. The coefficients are those of the minimax
    // polynomial of 2^f whose constant term is fixed at 1.
    const COEFFICIENTS: [f32; 6] = [
        1.534_581_2e-4,
        1.339_993_1e-3,
        9.618_489e-3,
        5.550_329e-2,
        2.402_264_7e-1,
        6.931_472e-1,
    ];
    let log2e = simd.splat(std::f32::consts::LOG2_E);
    let x = simd.max(simd.splat(S::EXP_UNDERFLOW), x);
    let n = simd.round(simd.mul(x, log2e));
    let f = simd.mul_add(x, log2e, simd.sub(simd.splat(0.0), n));
    let mut power = simd.splat(COEFFICIENTS[0]);
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        power = simd.mul_add(power, f, simd.splat(COEFFICIENTS[i]));
        i += 1;
    }
    simd.scale(simd.mul_add(power, f, simd.splat(1.0)), n)
}

/// Replaces logits x by c tanh(x / c), in whole vectors.
///
/// The relative error of tanh is at most 4e-7. NaN stays NaN.
#[inline(always)]
pub(super) fn bound<S: Simd>(simd: S, logits: &mut [f32], softcap: f32) {
    // tanh(4 a) by two doublings of the Padé approximant of order [7/6] of tanh(a).
    const NUMERATOR: [f32; 4] = [1.0, 378.0, 17_325.0, 135_135.0];
    const DENOMINATOR: [f32; 4] = [28.0, 3_150.0, 62_370.0, 135_135.0];
    /// The tanh of a quarter of more rounds to 1 after the doublings.
    const LARGEST: f32 = 2.3;
    let polynomial = |coefficients: [f32; 4], x: S::F| {
        let mut value = simd.splat(coefficients[0]);
        let mut i = 1;
        while i < coefficients.len() {
            value = simd.mul_add(value, x, simd.splat(coefficients[i]));
            i += 1;
        }
        value
    };
    let (one, two) = (simd.splat(1.0), simd.splat(2.0));
    let quarter = simd.splat(0.25 / softcap);
    for part in logits.chunks_exact_mut(S::LANES) {
        let a = simd.mul(simd.load(part), quarter);
        let a = simd.min(simd.splat(LARGEST), a);
        let a = simd.max(simd.splat(-LARGEST), a);
        let square = simd.mul(a, a);
        let ratio = simd.div(
            polynomial(NUMERATOR, square),
            polynomial(DENOMINATOR, square),
        );
        let mut tanh = simd.mul(a, ratio);
        let mut doubling = 0;
        while doubling < 2 {
            tanh = simd.div(simd.mul(two, tanh), simd.mul_add(tanh, tanh, one));
            doubling += 1;
        }
        simd.store(simd.mul(tanh, simd.splat(softcap)), part);
    }
}

/// The state of a softmax-weighted sum over the values so far, for g query heads.
///
/// For the logits x_i and values v_i of a head: m = max x_i, l = sum e^(x_i - m),
/// o = sum e^(x_i - m) v_i.
#[derive(Clone, Debug)]
pub(super) struct OnlineSoftmax {
    /// m: [g].
    pub(super) largest: Vec<f32>,
    /// l: [g].
    pub(super) weight: Vec<f32>,
    /// o: [g, width], the width being d rounded up to whole vectors. Elements past d are 0.
    pub(super) sum: Vec<f32>,
    width: usize,
}

impl OnlineSoftmax {
    pub(super) fn new(heads: usize, width: usize) -> Self {
        Self {
            largest: vec![LOWEST; heads],
            weight: vec![0.0; heads],
            sum: vec![0.0; heads * width],
            width,
        }
    }

    /// Returns the state of some of the heads.
    pub(super) fn heads(&self, heads: Range<usize>) -> Self {
        let width = self.width;
        Self {
            largest: self.largest[heads.clone()].to_vec(),
            weight: self.weight[heads.clone()].to_vec(),
            sum: self.sum[heads.start * width..heads.end * width].to_vec(),
            width,
        }
    }

    /// Returns the state over the values of both.
    pub(super) fn merge(mut self, other: &Self) -> Self {
        for head in 0..other.largest.len() {
            let (mine, others) = (self.largest[head], other.largest[head]);
            let largest = mine.max(others);
            let (keep, take) = ((mine - largest).exp(), (others - largest).exp());
            self.largest[head] = largest;
            self.weight[head] = self.weight[head] * keep + other.weight[head] * take;
            let row = head * self.width..(head + 1) * self.width;
            let others = &other.sum[row.clone()];
            for (mine, others) in self.sum[row].iter_mut().zip(others) {
                *mine = *mine * keep + others * take;
            }
        }
        self
    }

    /// Writes the weighted mean of a head's values to `output` [d], or zeros if there were none.
    pub(super) fn write(&self, head: usize, output: &mut [f32]) {
        let scale = 1.0 / self.weight[head].max(f32::MIN_POSITIVE);
        let sum = &self.sum[head * self.width..];
        for (output, sum) in output.iter_mut().zip(sum) {
            *output = sum * scale;
        }
    }
}
