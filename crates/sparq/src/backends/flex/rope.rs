//! RoPE of the queries or keys of one token.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;

use super::element::Element;
use super::simd::{Kernel, Level, Simd};
use crate::ops::Spans;

/// Rotates x [B, H, 1, d] for the position after `spans`. Returns [B, H, 1, d] in the type of x, or
/// `None` if x is of another type or not contiguous.
///
/// `table` is a [`Rotary::table`](crate::ops::Rotary::table) in fp32 with rows of `width`.
pub(super) fn rotate_token<T: Element + burn::tensor::Element>(
    level: Level,
    x: &FloatTensor<Flex>,
    (table, width): (&[f32], usize),
    spans: &Spans,
) -> Option<FloatTensor<Flex>> {
    let shape = x.layout().shape().clone();
    let (heads, d) = (shape[1], shape[3]);
    let mut values = T::slice(x)?.to_vec();
    for (index, sequence) in values.chunks_exact_mut(heads * d).enumerate() {
        let angles = &table[spans.count(index) * width..][..width];
        let (cos, sin) = angles.split_at(width / 2);
        level.run(Rotate {
            heads: sequence,
            d,
            cos,
            sin,
        });
    }
    Some(FloatTensor::<Flex>::from_data(TensorData::new(
        values, shape,
    )))
}

/// Rotates the heads of one token in place.
struct Rotate<'a, T> {
    /// [H, d].
    heads: &'a mut [T],
    d: usize,
    /// [pairs].
    cos: &'a [f32],
    /// [pairs].
    sin: &'a [f32],
}

impl<T: Element> Kernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pairs = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.d) {
            let (first, second) = head[..2 * pairs].split_at_mut(pairs);
            for index in (0..pairs).step_by(S::LANES) {
                let cos = f32::load_at(simd, self.cos, index);
                let sin = f32::load_at(simd, self.sin, index);
                let a = T::load_at(simd, first, index);
                let b = T::load_at(simd, second, index);
                let rotated = simd.sub(simd.mul(a, cos), simd.mul(b, sin));
                T::store_at(simd, rotated, first, index);
                let rotated = simd.add(simd.mul(b, cos), simd.mul(a, sin));
                T::store_at(simd, rotated, second, index);
            }
        }
    }
}
