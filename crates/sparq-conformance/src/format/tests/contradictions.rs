//! Files that contradict themselves or contain invalid numbers.

use super::edited_file::{EditedFile, PADDED, SKETCH};
use crate::Case;

#[test]
fn padding_that_contradicts_the_mask_is_refused() {
    let error = EditedFile::of(PADDED).entry("pad", "[0, 16, 60]").error();
    assert!(
        error.contains("logmask: expected 0 at [1, 16], to match pad and mask"),
        "{error}"
    );
    let error = EditedFile::of(PADDED).entry("mask", "neg_inf").error();
    assert!(
        error.contains("logmask: expected -inf at [1, 0], to match pad and mask"),
        "{error}"
    );
    let error = EditedFile::of(PADDED).entry("mask", "none").error();
    assert!(
        error.contains("logmask: expected no left padding at [1, 0]"),
        "{error}"
    );
}

#[test]
fn contradicting_tensors_are_refused() {
    // The last position, the current token, is always selected.
    let error = EditedFile::of(PADDED)
        .bytes_at("selected", 95, &[0])
        .error();
    assert_eq!(
        error,
        "a.safetensors: selected: expected 1 at [0, 0, 95], to match indices, found 0"
    );
    let error = EditedFile::of(SKETCH)
        .bytes_at("indices", 0, &199i64.to_le_bytes())
        .error();
    assert!(
        error.contains("indices: expected ascending indices, found 199 before"),
        "{error}"
    );
    let error = EditedFile::of(SKETCH)
        .bytes_at("indices", 0, &(-1i64).to_le_bytes())
        .error();
    assert!(
        error.contains("indices: expected indices from 0 to below 200, found -1"),
        "{error}"
    );
    let error = EditedFile::of(SKETCH)
        .bytes_at("top_r", 56, &32i64.to_le_bytes())
        .error();
    assert!(
        error.contains("top_r: expected indices from 0 to below 32, found 32"),
        "{error}"
    );
    let error = EditedFile::of(SKETCH).bytes_at("codes", 7, &[16]).error();
    assert!(
        error.contains("codes: expected numbers up to 15, found 16"),
        "{error}"
    );
    let error = EditedFile::of(SKETCH)
        .bytes_at("step", 0, &(-1f32).to_le_bytes())
        .error();
    assert!(
        error.contains("step: expected numbers of at least 0, found -1"),
        "{error}"
    );
    let case = Case::from_bytes("a.safetensors", PADDED).unwrap();
    let left_out = case
        .expected
        .selected
        .values()
        .iter()
        .position(|&mark| mark == 0)
        .unwrap();
    let error = EditedFile::of(PADDED)
        .bytes_at("weights", 4 * left_out, &1f32.to_le_bytes())
        .error();
    assert!(error.contains("weights: expected 0 at position"), "{error}");
}

#[test]
fn infinite_and_nan_elements_are_refused() {
    for (tensor, value) in [("q", f32::NAN), ("v", f32::INFINITY), ("output", f32::NAN)] {
        let error = EditedFile::of(SKETCH)
            .bytes_at(tensor, 4, &value.to_le_bytes())
            .error();
        let message = format!("a.safetensors: {tensor}: expected finite numbers, found {value}");
        assert_eq!(error, message);
    }
    let error = EditedFile::of(PADDED)
        .bytes_at("logmask", 0, &f32::NAN.to_le_bytes())
        .error();
    assert_eq!(error, "a.safetensors: logmask: expected no NaN, found NaN");
}

#[test]
fn huge_sizes_are_refused_before_allocation() {
    for key in ["batch", "seq", "head_dim", "n_heads"] {
        for bytes in [PADDED, SKETCH] {
            let error = EditedFile::of(bytes)
                .entry(key, "4611686018427387904")
                .error();
            assert!(
                error.contains("a.safetensors: q: expected") || error.contains(": k: expected"),
                "{error}"
            );
        }
    }
}
