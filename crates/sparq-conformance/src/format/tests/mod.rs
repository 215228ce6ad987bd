//! Reads intact and edited files.

mod contradictions;
mod edited_file;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::{Case, ConformanceError, Kind};
use edited_file::{EditedFile, NO_REALLOCATION, PADDED, SKETCH};

#[test]
fn cases_hold_the_settings_and_tensors_of_the_file() {
    let case = Case::from_bytes("a.safetensors", PADDED).unwrap();
    assert_eq!(case.name, "mha_pad_finfo_min");
    assert_eq!(case.kind, Kind::Authors);
    assert_eq!(case.problem.to_string(), "B3 H4/4 d32 S96");
    // The authors' k and local_k do not count the current token.
    assert_eq!((case.config.top_k, case.config.local_window), (17, 5));
    assert_eq!(case.left_padding, [0, 17, 60]);
    assert_eq!(case.inputs.k.shape(), [3, 4, 96, 32]);
    assert_eq!(case.expected.components.shape(), [3, 4, 8]);
    assert_eq!(EditedFile::of(PADDED).read().unwrap(), case);

    let case = Case::from_bytes("a.safetensors", SKETCH).unwrap();
    assert_eq!((case.config.top_k, case.config.local_window), (48, 12));
    assert_eq!(case.expected.sketch.unwrap().codes.shape(), [1, 4, 32, 200]);
}

#[test]
fn alpha_is_unknown_without_reallocation() {
    let case = Case::from_bytes("a.safetensors", NO_REALLOCATION).unwrap();
    assert_eq!(case.expected.alpha, None);
    let changed = EditedFile::of(NO_REALLOCATION).bytes_at("alpha", 0, &0.5f32.to_le_bytes());
    let message = "a.safetensors: alpha: expected 1 without reallocation, found 0.5";
    assert_eq!(changed.error(), message);
}

#[test]
fn missing_keys_are_named() {
    // The origin of a file is not read. A file without sketch_bits has the other format.
    let optional = ["seed", "source", "torch", "margin_top_r", "margin_top_k"];
    for bytes in [PADDED, SKETCH] {
        for key in EditedFile::of(bytes).metadata.keys() {
            let result = EditedFile::of(bytes).without_entry(key).read();
            if optional.contains(&key.as_str()) {
                result.unwrap();
                continue;
            }
            let named = if key == "sketch_bits" { "k" } else { key };
            let message =
                format!("a.safetensors: {named}: expected a metadata entry, found nothing");
            assert_eq!(result.unwrap_err().to_string(), message);
        }
        for tensor in EditedFile::of(bytes).tensors.keys() {
            let error = EditedFile::of(bytes).without_tensor(tensor).error();
            let start = format!("a.safetensors: {tensor}: expected a tensor ");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.ends_with("found nothing"), "{error}");
        }
    }
}

#[test]
fn wrong_types_and_shapes_are_refused() {
    type Tensor = (Dtype, Vec<usize>, Vec<u8>);
    let changes: [fn(&mut Tensor); 2] = [
        |(_, shape, _)| shape.insert(0, 1),
        |(dtype, ..)| {
            *dtype = match dtype {
                Dtype::F32 => Dtype::I32,
                Dtype::I64 => Dtype::F64,
                _ => Dtype::I8,
            };
        },
    ];
    for (bytes, change) in [PADDED, SKETCH]
        .iter()
        .flat_map(|b| changes.map(|c| (b, c)))
    {
        for tensor in EditedFile::of(bytes).tensors.keys() {
            let mut parts = EditedFile::of(bytes);
            change(parts.tensors.get_mut(tensor).unwrap());
            let (error, start) = (parts.error(), format!("a.safetensors: {tensor}: expected"));
            assert!(error.starts_with(&start), "{error}");
        }
    }
}

#[test]
fn invalid_settings_are_refused() {
    // Key, value, and the rest of the message after "KEY: expected".
    let cases = [
        (
            "rank",
            "33",
            "1 to 32 (the head_dim), found 33; lower the rank",
        ),
        ("rank", "0", "an integer of at least 1, found 0"),
        ("rank", "-1", "an integer of at least 1, found \"-1\""),
        ("n_kv_heads", "0", "an integer of at least 1, found 0"),
        (
            "k",
            "18446744073709551615",
            "a smaller number, found 18446744073709551615",
        ),
        (
            "mask",
            "zero",
            "none or finfo_min or neg_inf, found \"zero\"",
        ),
        (
            "reallocate_to_mean_value",
            "yes",
            "true or false, found \"yes\"",
        ),
        ("pad", "[0, 96, 0]", "lengths below seq (96), found 96"),
        (
            "pad",
            "[0, 1]",
            "3 lengths, one per sequence, or none, found 2",
        ),
        ("name", "\u{1b}[2J", "printable text, found \"\\u{1b}[2J\""),
    ];
    for (key, value, message) in cases {
        let error = EditedFile::of(PADDED).entry(key, value).error();
        assert_eq!(error, format!("a.safetensors: {key}: expected {message}"));
    }
    let error = EditedFile::of(PADDED).entry("n_kv_heads", "3").error();
    let message = "a.safetensors: n_heads: expected a multiple of n_kv_heads (3), found 4";
    assert_eq!(error, message);
    let error = EditedFile::of(PADDED).entry("local_k", "17").error();
    let message = "a.safetensors: local_window: expected at most 17 (the top_k, which counts the \
        window), found 18; lower the local window or raise top_k";
    assert_eq!(error, message);
    let error = EditedFile::of(SKETCH).entry("sketch_bits", "3").error();
    let message = "a.safetensors: sketch_bits: expected 4 or 8, found \"3\"";
    assert_eq!(error, message);
}

#[test]
fn damaged_files_are_refused() {
    let read = |bytes: &[u8]| Case::from_bytes("a.safetensors", bytes);
    for length in (0..2000).chain([SKETCH.len() - 1]) {
        let error = read(&SKETCH[..length]).unwrap_err();
        let of_format = matches!(error, ConformanceError::Format { .. });
        assert!(of_format, "{length}: {error}");
    }
    let mut huge = SKETCH.to_vec();
    huge[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    assert!(matches!(read(&huge), Err(ConformanceError::Format { .. })));

    let parts = EditedFile::of(SKETCH);
    let views = parts.tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bare = safetensors::serialize(views, None).unwrap();
    let error = read(&bare).unwrap_err().to_string();
    let message = "a.safetensors: __metadata__: expected the settings of the case, found nothing";
    assert_eq!(error, message);
}
