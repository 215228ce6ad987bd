//! Files that contradict themselves or contain invalid numbers.

use super::edited_file::{EditedFile, PADDED, SKETCH};
use crate::Case;

#[test]
fn padding_that_contradicts_the_mask_is_refused() {
    for (key, value, message) in [
        (
            "pad",
            "[0, 16, 60]",
            "expected 0 at [1, 16], to match pad and mask",
        ),
        (
            "mask",
            "neg_inf",
            "expected -inf at [1, 0], to match pad and mask",
        ),
        ("mask", "none", "expected no left padding at [1, 0]"),
    ] {
        let error = EditedFile::of(PADDED).entry(key, value).error();
        assert!(error.contains(&format!("logmask: {message}")), "{error}");
    }
}

#[test]
fn contradicting_tensors_are_refused() {
    // The last position, the current token, is always selected.
    let error = EditedFile::of(PADDED).bytes_at("selected", 95, &[0]);
    let message = "a.safetensors: selected: expected 1 at [0, 0, 95], to match indices, found 0";
    assert_eq!(error.error(), message);
    let index = i64::to_le_bytes;
    let edits: [(&str, usize, &[u8], &str); 5] = [
        (
            "indices",
            0,
            &index(199),
            "ascending indices, found 199 before",
        ),
        (
            "indices",
            0,
            &index(-1),
            "indices from 0 to below 200, found -1",
        ),
        (
            "top_r",
            56,
            &index(32),
            "indices from 0 to below 32, found 32",
        ),
        ("codes", 7, &[16], "numbers up to 15, found 16"),
        (
            "step",
            0,
            &(-1f32).to_le_bytes(),
            "numbers of at least 0, found -1",
        ),
    ];
    for (tensor, offset, bytes, message) in edits {
        let error = EditedFile::of(SKETCH)
            .bytes_at(tensor, offset, bytes)
            .error();
        assert!(
            error.contains(&format!("{tensor}: expected {message}")),
            "{error}"
        );
    }
    let case = Case::from_bytes("a.safetensors", PADDED).unwrap();
    let mut marks = case.expected.selected.values().iter();
    let left_out = marks.position(|&mark| mark == 0).unwrap();
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
