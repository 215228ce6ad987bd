//! RoPE of the query or key of one token.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, TensorData};

use super::cast;
use super::element::Element;
use crate::ops::Spans;

/// Rotates x [B, H, 1, d] for the position after `spans`. Returns [B, H, 1, d] in the type of x.
///
/// `table` is a [`Rotary::table`](crate::ops::Rotary::table) in fp32.
pub(super) fn rotate_token(
    x: FloatTensor<Flex>,
    table: &FloatTensor<Flex>,
    spans: &Spans,
) -> FloatTensor<Flex> {
    let (dtype, shape) = (x.dtype(), x.layout().shape().clone());
    let (heads, d) = (shape[1], shape[3]);
    let width = table.layout().shape()[1];
    let x = cast(x, DType::F32);
    let (Some(values), Some(table)) = (f32::slice(&x), f32::slice(table)) else {
        unreachable!("cast returns contiguous fp32 tensors")
    };
    let mut values = values.to_vec();
    for (index, sequence) in values.chunks_exact_mut(heads * d).enumerate() {
        let angles = &table[spans.count(index) * width..][..width];
        let (cos, sin) = angles.split_at(width / 2);
        for head in sequence.chunks_exact_mut(d) {
            let (first, second) = head[..width].split_at_mut(width / 2);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
    let rotated = FloatTensor::<Flex>::from_data(TensorData::new(values, shape));
    cast(rotated, dtype)
}
