//! The float types that models compute in: [`Weight`].

use burn::tensor::Element;
use half::{bf16, f16, slice::HalfFloatSliceExt};

/// A float type that decoded weights are converted to.
pub(super) trait Weight: Element {
    const ZERO: Self;
    fn extend(weights: &mut Vec<Self>, values: &[f32]);
    fn is_finite(&self) -> bool;
}

impl Weight for f64 {
    const ZERO: Self = 0.0;

    fn extend(weights: &mut Vec<Self>, values: &[f32]) {
        weights.extend(values.iter().map(|&value| f64::from(value)));
    }

    fn is_finite(&self) -> bool {
        f64::is_finite(*self)
    }
}

impl Weight for f32 {
    const ZERO: Self = 0.0;

    fn extend(weights: &mut Vec<Self>, values: &[f32]) {
        weights.extend_from_slice(values);
    }

    fn is_finite(&self) -> bool {
        f32::is_finite(*self)
    }
}

impl Weight for f16 {
    const ZERO: Self = f16::ZERO;

    fn extend(weights: &mut Vec<Self>, values: &[f32]) {
        let start = weights.len();
        weights.resize(start + values.len(), f16::ZERO);
        // The CPU's instructions for f16 convert slices: one value at a time costs ten times as
        // much.
        weights[start..].convert_from_f32_slice(values);
    }

    fn is_finite(&self) -> bool {
        f16::is_finite(*self)
    }
}

impl Weight for bf16 {
    const ZERO: Self = bf16::ZERO;

    fn extend(weights: &mut Vec<Self>, values: &[f32]) {
        weights.extend(values.iter().map(|&value| bf16::from_f32(value)));
    }

    fn is_finite(&self) -> bool {
        bf16::is_finite(*self)
    }
}
