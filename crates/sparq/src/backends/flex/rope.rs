//! RoPE of the queries or keys of tokens.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, TensorData};

use super::cast;
use super::element::Element;
use crate::ops::Spans;

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
    for (row, token) in values.chunks_exact_mut(d).enumerate() {
        let (sequence, token_index) = (row / (heads * len), row % len);
        let (start, end) = (spans.start[sequence], spans.end[sequence]);
        let angles = &table[(end + token_index).saturating_sub(start) * width..][..width];
        let (cos, sin) = angles.split_at(width / 2);
        let (first, second) = token[..width].split_at_mut(width / 2);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
    let rotated = FloatTensor::<Flex>::from_data(TensorData::new(values, shape));
    cast(rotated, dtype)
}
