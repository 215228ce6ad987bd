//! The most probable token of each row of logits.

use burn::tensor::{Int, Tensor};

/// Finds the largest element of each row of x [rows, width]; see
/// [`ops::argmax`](crate::ops::argmax) for the result [2, rows].
pub fn argmax(x: Tensor<2>) -> Tensor<2, Int> {
    let excluded = x.clone().is_nan();
    let excluded = excluded.bool_or(x.clone().equal_elem(f32::INFINITY));
    let has_candidate = x.clone().greater_elem(f32::NEG_INFINITY).any_dim(1);
    let valid = has_candidate.bool_and(excluded.any_dim(1).bool_not());
    let indices = x.argmax(1);
    let valid = valid.int().cast(indices.dtype());
    Tensor::cat(vec![indices.swap_dims(0, 1), valid.swap_dims(0, 1)], 0)
}
