//! The float types that models compute in: [`Weight`].

use burn::tensor::{Bytes, DType};
use half::{bf16, f16, slice::HalfFloatSliceExt, vec::HalfBitsVecExt};

/// A float type that decoded weights are converted to. The weights are the bytes of memory that
/// burn takes, because a buffer for a device has no other type.
pub(super) trait Weight {
    /// The type in burn.
    const DTYPE: DType;
    /// The bytes of one weight.
    const BYTES: usize;

    /// Allocates zeros. The system provides them, so no thread touches the memory before the one
    /// that fills it.
    fn zeros(count: usize) -> Bytes;

    /// Converts `values` to as many weights.
    fn encode(values: &[f32], weights: &mut [u8]);

    /// Returns whether all weights are finite.
    fn are_finite(weights: &[u8]) -> bool;
}

impl Weight for f64 {
    const DTYPE: DType = DType::F64;
    const BYTES: usize = 8;

    fn zeros(count: usize) -> Bytes {
        Bytes::from_elems(vec![0.0_f64; count])
    }

    fn encode(values: &[f32], weights: &mut [u8]) {
        for (weight, &value) in weights.as_chunks_mut().0.iter_mut().zip(values) {
            *weight = f64::from(value).to_ne_bytes();
        }
    }

    fn are_finite(weights: &[u8]) -> bool {
        const EXPONENT: i64 = 0x7ff0 << 48;
        let exponent = |bytes: &[u8; 8]| i64::from_ne_bytes(*bytes) & EXPONENT;
        largest(weights.as_chunks().0.iter().map(exponent)) < EXPONENT
    }
}

impl Weight for f32 {
    const DTYPE: DType = DType::F32;
    const BYTES: usize = 4;

    fn zeros(count: usize) -> Bytes {
        Bytes::from_elems(vec![0.0_f32; count])
    }

    fn encode(values: &[f32], weights: &mut [u8]) {
        for (weight, value) in weights.as_chunks_mut().0.iter_mut().zip(values) {
            *weight = value.to_ne_bytes();
        }
    }

    fn are_finite(weights: &[u8]) -> bool {
        let exponent = |bytes: &[u8; 4]| i32::from_ne_bytes(*bytes) & EXPONENT_F32;
        largest(weights.as_chunks().0.iter().map(exponent)) < EXPONENT_F32
    }
}

impl Weight for f16 {
    const DTYPE: DType = DType::F16;
    const BYTES: usize = 2;

    fn zeros(count: usize) -> Bytes {
        Bytes::from_elems(vec![0_u16; count].reinterpret_into::<f16>())
    }

    fn encode(values: &[f32], weights: &mut [u8]) {
        // The CPU's instructions for f16 convert slices: one value at a time costs ten times as
        // much.
        const BATCH: usize = 1024;
        let mut halves = [f16::ZERO; BATCH];
        let batches = weights.as_chunks_mut().0.chunks_mut(BATCH);
        for (weights, values) in batches.zip(values.chunks(BATCH)) {
            halves[..values.len()].convert_from_f32_slice(values);
            for (weight, half) in weights.iter_mut().zip(&halves) {
                *weight = half.to_ne_bytes();
            }
        }
    }

    fn are_finite(weights: &[u8]) -> bool {
        are_finite_halves::<0x7c00>(weights)
    }
}

impl Weight for bf16 {
    const DTYPE: DType = DType::BF16;
    const BYTES: usize = 2;

    fn zeros(count: usize) -> Bytes {
        Bytes::from_elems(vec![0_u16; count].reinterpret_into::<bf16>())
    }

    fn encode(values: &[f32], weights: &mut [u8]) {
        for (weight, value) in weights.as_chunks_mut().0.iter_mut().zip(values) {
            // Rounds to nearest, ties to even, without a branch, so that the loop is vectorised.
            // NaN may become any number: the values are checked as well.
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            *weight = ((rounded >> 16) as u16).to_ne_bytes();
        }
    }

    fn are_finite(weights: &[u8]) -> bool {
        are_finite_halves::<0x7f80>(weights)
    }
}

/// The bits of an f32's exponent.
const EXPONENT_F32: i32 = 0x7f80 << 16;

/// Returns whether all values are finite.
pub(super) fn are_finite(values: &[f32]) -> bool {
    let exponents = values
        .iter()
        .map(|value| value.to_bits() as i32 & EXPONENT_F32);
    largest(exponents) < EXPONENT_F32
}

/// As [`Weight::are_finite`] for floats of 16 bits with the bits `EXPONENT` of the exponent.
fn are_finite_halves<const EXPONENT: i16>(weights: &[u8]) -> bool {
    let exponent = |bytes: &[u8; 2]| i16::from_ne_bytes(*bytes) & EXPONENT;
    largest(weights.as_chunks().0.iter().map(exponent)) < EXPONENT
}

/// Returns the largest of numbers that are not negative.
///
/// NaN and infinity have an exponent of ones, the largest there is. A maximum has neither branch
/// nor early exit, so the loop is vectorised.
fn largest<T: Ord + Default>(numbers: impl Iterator<Item = T>) -> T {
    numbers.fold(T::default(), T::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values at the edges of the types and of rounding.
    fn edges() -> Vec<f32> {
        let around = |value: f32| {
            let bits = value.to_bits();
            (bits.saturating_sub(0x9000)..=bits + 0x9000).step_by(0x0fff)
        };
        let centers = [1e-40, 6e-8, 6.1e-5, 1.0, 1.5, 255.0, 65_504.0, 65_536.0];
        let largest = [f32::MAX, f32::MIN, -0.0, 0.0, 3.38e38];
        let all = centers.into_iter().flat_map(around).map(f32::from_bits);
        all.flat_map(|value| [value, -value])
            .chain(largest)
            .collect()
    }

    fn check<W: Weight>(convert: impl Fn(f32) -> (Vec<u8>, bool)) {
        for value in edges().into_iter().chain([f32::INFINITY, f32::NAN]) {
            let mut weight = vec![0; W::BYTES];
            W::encode(&[value], &mut weight);
            let (expected, finite) = convert(value);
            if !value.is_nan() {
                assert_eq!(weight, expected, "{value:e} in {:?}", W::DTYPE);
                assert_eq!(W::are_finite(&weight), finite, "{value:e}");
            }
            assert_eq!(W::are_finite(&expected), finite, "{value:e}");
            assert_eq!(are_finite(&[1.0, value]), value.is_finite());
        }
        assert_eq!(W::zeros(3)[..], vec![0; 3 * W::BYTES]);
    }

    #[test]
    fn encode_and_check_equal_the_scalar_types() {
        check::<f64>(|value| (f64::from(value).to_ne_bytes().into(), value.is_finite()));
        check::<f32>(|value| (value.to_ne_bytes().into(), value.is_finite()));
        check::<f16>(|value| {
            let half = f16::from_f32(value);
            (half.to_ne_bytes().into(), half.is_finite())
        });
        check::<bf16>(|value| {
            let half = bf16::from_f32(value);
            (half.to_ne_bytes().into(), half.is_finite())
        });
    }

    #[test]
    fn check_finds_one_weight_among_many() {
        for at in 0..67 {
            let mut values = vec![f32::MIN; 67];
            values[at] = f32::NEG_INFINITY;
            assert!(!are_finite(&values));
            let mut weights = vec![0xff_u8; 2 * 67];
            weights.as_chunks_mut::<2>().0.fill(f16::MIN.to_ne_bytes());
            assert!(f16::are_finite(&weights));
            weights[2 * at..][..2].copy_from_slice(&f16::NAN.to_ne_bytes());
            assert!(!f16::are_finite(&weights));
        }
    }
}
