//! Bias, activation and residual stream: from the sums of the product to the output.

use super::Combine;
use super::product::{Part, Sums};
use crate::backends::flex::element::Element;
use crate::backends::flex::online_softmax::exp;
use crate::backends::flex::simd::{Kernel, Level, Simd};
use crate::backends::flex::threads::Threads;
use crate::ops::Activation;

/// The operations after the product.
pub(super) struct Epilogue<'a, T> {
    /// The bias of each layer.
    pub(super) biases: &'a [Option<&'a [f32]>],
    pub(super) combine: Combine,
    /// [rows, out].
    pub(super) residual: Option<&'a [T]>,
}

impl<T: Element> Epilogue<'_, T> {
    /// Writes the output, [rows, out].
    pub(super) fn finish(&self, level: Level, sums: &Sums<'_>, output: &mut [T]) {
        let width = output.len() / sums.rows();
        let threads = Threads::new(sums.rows(), 4 * output.len());
        let outputs: Vec<_> = output.chunks_mut(width).enumerate().collect();
        threads.for_each(outputs, |(row, output)| {
            let residual = self.residual.map(|all| &all[row * width..][..width]);
            level.run(Row {
                epilogue: self,
                sums,
                row,
                residual,
                output,
            });
        });
    }
}

/// The epilogue of one row.
struct Row<'a, T> {
    epilogue: &'a Epilogue<'a, T>,
    sums: &'a Sums<'a>,
    row: usize,
    residual: Option<&'a [T]>,
    /// [out].
    output: &'a mut [T],
}

impl<T: Element> Kernel for Row<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.epilogue.combine {
            Combine::Concatenate => {
                let mut start = 0;
                for layer in 0..self.epilogue.biases.len() {
                    self.plain(simd, layer, start, None);
                    start += self.sums.outputs()[layer];
                }
            }
            Combine::Activated(activation) => self.plain(simd, 0, 0, Some(activation)),
            Combine::Gated(activation) => self.gated(simd, activation),
        }
    }
}

impl<T: Element> Row<'_, T> {
    /// Writes the outputs of a layer from index `start` of the row.
    #[inline(always)]
    fn plain<S: Simd>(
        &mut self,
        simd: S,
        layer: usize,
        start: usize,
        activation: Option<Activation>,
    ) {
        let bias = self.epilogue.biases[layer];
        for part in self.sums.row(layer, self.row) {
            let first = start + part.start;
            for index in (0..part.len).step_by(S::LANES) {
                let mut value = biased(simd, part, bias, index);
                if let Some(activation) = activation {
                    value = activate(simd, activation, value);
                }
                self.write(simd, value, first + index, first + part.len);
            }
        }
    }

    /// Writes the activation of layer 0 multiplied by layer 1.
    #[inline(always)]
    fn gated<S: Simd>(&mut self, simd: S, activation: Activation) {
        let (gate_bias, bias) = (self.epilogue.biases[0], self.epilogue.biases[1]);
        let gates = self.sums.row(0, self.row);
        for (gates, part) in gates.zip(self.sums.row(1, self.row)) {
            for index in (0..part.len).step_by(S::LANES) {
                let gate = biased(simd, gates, gate_bias, index);
                let value = biased(simd, part, bias, index);
                let value = simd.mul(activate(simd, activation, gate), value);
                self.write(simd, value, part.start + index, part.start + part.len);
            }
        }
    }

    /// Writes outputs from `index` to before `end`, at most one vector.
    #[inline(always)]
    fn write<S: Simd>(&mut self, simd: S, value: S::F, index: usize, end: usize) {
        let value = match self.residual {
            None => value,
            Some(residual) => simd.add(value, T::load_at(simd, &residual[..end], index)),
        };
        T::store_at(simd, value, &mut self.output[..end], index);
    }
}

/// Returns sums from an index, plus the bias.
#[inline(always)]
fn biased<S: Simd>(simd: S, part: Part<'_>, bias: Option<&[f32]>, index: usize) -> S::F {
    let value = part.load(simd, index);
    match bias {
        None => value,
        Some(bias) => simd.add(value, f32::load_at(simd, bias, part.start + index)),
    }
}

/// Returns the activation. Each one has an absolute error of a few units in the last place of x.
#[inline(always)]
fn activate<S: Simd>(simd: S, activation: Activation, x: S::F) -> S::F {
    match activation {
        Activation::Silu => times_sigmoid(simd, x, x),
        Activation::Gelu => gelu(simd, x),
        Activation::GeluTanh => {
            // (1 + tanh u) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
            const TWO_U: f32 = 2.0 * 0.797_884_6;
            let square = simd.mul(x, x);
            let factor = simd.mul_add(square, simd.splat(TWO_U * 0.044_715), simd.splat(TWO_U));
            times_sigmoid(simd, x, simd.mul(x, factor))
        }
        // The second operand is what remains of a NaN.
        Activation::Relu => simd.max(simd.splat(0.0), x),
    }
}

/// Returns x sigmoid(z) for an x and a z of the same sign.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::F, z: S::F) -> S::F {
    // sigmoid(z) is 1 / (1 + e^-|z|), times e^-|z| if z is negative.
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    let power = exp(simd, simd.min(z, simd.sub(zero, z)));
    let (positive, negative) = (simd.max(zero, x), simd.min(zero, x));
    let numerator = simd.mul_add(negative, power, positive);
    simd.div(numerator, simd.add(one, power))
}

/// Returns x Phi(x), with the approximation 7.1.26 of erf by Abramowitz and Stegun, whose error is
/// at most 1.5e-7.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    const COEFFICIENTS: [f32; 5] = [
        1.061_405_4,
        -1.453_152,
        1.421_413_7,
        -0.284_496_74,
        0.254_829_6,
    ];
    let zero = simd.splat(0.0);
    // From 16 on, erfc is 0. It would not stay 0 times an infinite x.
    let size = simd.min(simd.splat(16.0), simd.max(x, simd.sub(zero, x)));
    let z = simd.mul(size, simd.splat(std::f32::consts::FRAC_1_SQRT_2));
    let one = simd.splat(1.0);
    let t = simd.div(one, simd.mul_add(z, simd.splat(0.327_591_1), one));
    let mut polynomial = simd.splat(COEFFICIENTS[0]);
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        polynomial = simd.mul_add(polynomial, t, simd.splat(COEFFICIENTS[i]));
        i += 1;
    }
    let erfc = simd.mul(
        simd.mul(polynomial, t),
        exp(simd, simd.sub(zero, simd.mul(z, z))),
    );
    // Phi(x) = 1 - erfc(z) / 2 for x >= 0, and erfc(z) / 2 below.
    let half = simd.mul(size, simd.mul(erfc, simd.splat(0.5)));
    simd.sub(simd.max(zero, x), half)
}
