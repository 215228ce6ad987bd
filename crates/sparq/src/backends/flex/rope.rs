//! RoPE of queries or keys, with angles from a table.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::element::Element;
use super::simd::{Kernel, Level, Simd};
use crate::ops::Spans;

/// Elements from which on several threads rotate.
const MANY: usize = 1 << 16;

/// Rotates x [B, H, T, d] for the positions after `spans`. Returns [B, H, T, d] in the type of x,
/// or `None` if x is of another type or not contiguous.
///
/// `table` is a [`Rotary::table`](crate::ops::Rotary::table) in fp32 with rows of `width`.
pub(super) fn rotate<T: Element + burn::tensor::Element>(
    level: Level,
    x: &FloatTensor<Flex>,
    (table, width): (&[f32], usize),
    spans: &Spans,
) -> Option<FloatTensor<Flex>> {
    let shape = x.layout().shape().clone();
    let (heads, len, d) = (shape[1], shape[2], shape[3]);
    let mut values = T::slice(x)?.to_vec();
    let rotate = |(index, head): (usize, &mut [T])| {
        let (start, end) = (spans.start[index / heads], spans.end[index / heads]);
        level.run(Rotate {
            head,
            d,
            table,
            width,
            start,
            end,
        });
    };
    let head = (len * d).max(1);
    match values.len() < MANY {
        true => values.chunks_exact_mut(head).enumerate().for_each(rotate),
        false => (values.par_chunks_exact_mut(head).enumerate()).for_each(rotate),
    }
    Some(FloatTensor::<Flex>::from_data(TensorData::new(
        values, shape,
    )))
}

/// Rotates the tokens of one head in place.
struct Rotate<'a, T> {
    /// [T, d].
    head: &'a mut [T],
    d: usize,
    /// [positions, 2 pairs].
    table: &'a [f32],
    /// Twice the pairs.
    width: usize,
    /// The first valid position of the sequence.
    start: usize,
    /// The position of the first token.
    end: usize,
}

impl<T: Element> Kernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pairs = self.width / 2;
        for (token, row) in self.head.chunks_exact_mut(self.d).enumerate() {
            let position = (self.end + token).saturating_sub(self.start);
            let (cos, sin) = self.table[position * self.width..][..self.width].split_at(pairs);
            let (first, second) = row[..2 * pairs].split_at_mut(pairs);
            for index in (0..pairs).step_by(S::LANES) {
                let cos = f32::load_at(simd, cos, index);
                let sin = f32::load_at(simd, sin, index);
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
