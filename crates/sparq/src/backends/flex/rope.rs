//! RoPE of queries or keys, with angles from a table.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, TensorData};
use rayon::prelude::*;

use super::cast;
use super::element::Element;
use crate::ops::Spans;

/// Elements from which on several threads rotate.
const MANY: usize = 1 << 16;

/// Rotates x [B, H, T, d] for the positions after `spans`. Returns [B, H, T, d] in the type of x.
///
/// `table` is a [`Rotary::table`](crate::ops::Rotary::table) in fp32.
pub(super) fn rotate(
    x: FloatTensor<Flex>,
    table: &FloatTensor<Flex>,
    spans: &Spans,
) -> FloatTensor<Flex> {
    let (dtype, shape) = (x.dtype(), x.layout().shape().clone());
    let (heads, len, d) = (shape[1], shape[2], shape[3]);
    let width = table.layout().shape()[1];
    let x = cast(x, DType::F32);
    let (Some(values), Some(table)) = (f32::slice(&x), f32::slice(table)) else {
        unreachable!("cast returns contiguous fp32 tensors")
    };
    let mut values = values.to_vec();
    let rotate_head = |(head, rows): (usize, &mut [f32])| {
        let sequence = head / heads;
        for (token, row) in rows.chunks_exact_mut(d).enumerate() {
            let position = (spans.end[sequence] + token).saturating_sub(spans.start[sequence]);
            let (cos, sin) = table[position * width..][..width].split_at(width / 2);
            let (first, second) = row[..width].split_at_mut(width / 2);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    };
    match values.len() < MANY {
        true => (values.chunks_exact_mut(len * d).enumerate()).for_each(rotate_head),
        false => (values.par_chunks_exact_mut(len * d).enumerate()).for_each(rotate_head),
    }
    let rotated = FloatTensor::<Flex>::from_data(TensorData::new(values, shape));
    cast(rotated, dtype)
}
