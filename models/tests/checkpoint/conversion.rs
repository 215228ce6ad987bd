//! Converted models: the round trip changes nothing, and damage is detected.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use crate::support::{assert_contains, checkpoint, f32_bytes, folder, safetensors};
use burn::tensor::{Device, FloatDType};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sparq::SparqConfig;
use sparq_models::checkpoint::{Checkpoint, Conversion, Loader, StoredType, Weights};
use tempfile::TempDir;

fn open(path: &Path) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(path).unwrap())
}

fn convert(source: &Path) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    Conversion::new(open(source)).write(out.path()).unwrap();
    out
}

/// Returns type, shape and bytes of every tensor.
fn tensors(bytes: &[u8]) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensors = file.tensors().into_iter();
    let parts = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    tensors.map(|(name, view)| (name, parts(view))).collect()
}

/// Returns the bytes of 16-bit floats, made finite: an exponent of all ones is cleared.
fn finite_halves(seed: &[u16], ones: u16) -> Vec<u8> {
    let finite = seed.iter().map(|bits| match bits & ones == ones {
        true => bits ^ ones,
        false => *bits,
    });
    finite.flat_map(u16::to_le_bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn round_trip_changes_no_bit(
        words in prop::collection::vec(any::<u32>(), 15),
        halves in prop::collection::vec(any::<u16>(), 15),
    ) {
        let words = words.iter().map(|bits| if bits >> 23 & 255 == 255 { bits ^ 1 << 30 } else { *bits });
        let words: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let weights = safetensors(&[
            ("a.weight", Dtype::F32, &[3, 5], words.clone()),
            ("embed.weight", Dtype::F32, &[5, 3], words),
            ("b.weight", Dtype::F16, &[5, 3], finite_halves(&halves, 0x7c00)),
            ("c.weight", Dtype::BF16, &[1, 15], finite_halves(&halves, 0x7f80)),
            ("d.bias", Dtype::F16, &[15], finite_halves(&halves, 0x7c00)),
            ("e", Dtype::BF16, &[], finite_halves(&halves[..1], 0x7f80)),
            ("f", Dtype::F32, &[0, 4], vec![]),
        ]);
        let source = checkpoint(&weights);
        let converted = convert(source.path());
        let back = tempfile::tempdir().unwrap();
        Conversion::new(open(converted.path())).write_safetensors(back.path()).unwrap();
        let found = fs::read(back.path().join("model.safetensors")).unwrap();
        prop_assert_eq!(tensors(&found), tensors(&weights));
        // Converting a converted model changes nothing either.
        let again = convert(converted.path());
        for name in ["model.bpk", "sparq.json", "config.json"] {
            let read = |folder: &TempDir| fs::read(folder.path().join(name)).unwrap();
            prop_assert!(read(&again) == read(&converted), "{}", name);
        }
    }
}

#[test]
fn layers_equal_the_original_in_every_type() {
    let values: Vec<f32> = (0..12).map(|value| value as f32 / 4.0 - 1.0).collect();
    let weights = safetensors(&[
        ("proj.weight", Dtype::F32, &[3, 4], f32_bytes(&values)),
        ("proj.bias", Dtype::F32, &[3], f32_bytes(&values[..3])),
        ("embed.weight", Dtype::F32, &[4, 3], f32_bytes(&values)),
    ]);
    let source = checkpoint(&weights);
    let converted = convert(source.path());
    for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
        let [one, other] = [source.path(), converted.path()].map(|path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            let loader = Loader::new(&checkpoint, &Device::flex(), dtype).unwrap();
            let linear = loader.linear("proj", 4, 3, true).unwrap();
            let embedding = loader.embedding("embed.weight", 4, 3).unwrap();
            let matrix = checkpoint.tensor::<2>("proj.weight", [3, 4], dtype, &Device::flex());
            assert_eq!(loader.bytes_read(), 4 * 27);
            [
                linear.float().unwrap().weight.val().into_data(),
                linear.bias().unwrap().into_data(),
                embedding.float().unwrap().weight.val().into_data(),
                matrix.unwrap().into_data(),
            ]
        });
        assert_eq!(one, other, "{dtype:?}");
    }
}

#[test]
fn dtype_and_settings_are_written() {
    let weights = safetensors(&[("a.weight", Dtype::F32, &[2], f32_bytes(&[1.0, 0.1]))]);
    let source = checkpoint(&weights);
    let config = SparqConfig::new(4, 32);
    let out = tempfile::tempdir().unwrap();
    let conversion = Conversion::new(open(source.path()));
    let conversion = conversion
        .with_dtype(Some(StoredType::BF16))
        .with_attention(Some(config));
    conversion.write(out.path()).unwrap();
    let converted = Checkpoint::open(out.path()).unwrap();
    assert_eq!(converted.entry("a.weight").unwrap().dtype, StoredType::BF16);
    assert_eq!(converted.attention(), Some(config));
    assert_eq!(Checkpoint::open(source.path()).unwrap().attention(), None);
}

#[test]
fn small_files_are_copied() {
    let weights = safetensors(&[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))]);
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{ \"odd\":   1 }"),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"hello"),
        ("unrelated.txt", b"is not copied"),
        ("model.safetensors", &weights),
    ];
    let source = folder(&files);
    fs::create_dir(source.path().join("additional_chat_templates")).unwrap();
    let template = "additional_chat_templates/tool.jinja";
    fs::write(source.path().join(template), "tool").unwrap();
    let converted = convert(source.path());
    let read = |name: &str| fs::read(converted.path().join(name)).ok();
    for (name, bytes) in &files[..3] {
        assert_eq!(read(name).as_deref(), Some(*bytes), "{name}");
    }
    assert_eq!(read(template).as_deref(), Some(&b"tool"[..]));
    assert_eq!(read("unrelated.txt"), None);
    assert_eq!(read("model.safetensors"), None);
}

#[test]
fn damaged_bytes_are_found_or_harmless() {
    let weights = safetensors(&[
        ("a.weight", Dtype::F32, &[3, 2], f32_bytes(&[0.5; 6])),
        ("b", Dtype::F16, &[4], vec![0; 8]),
    ]);
    let converted = convert(checkpoint(&weights).path());
    let read_all = || -> Result<_, String> {
        let checkpoint = Checkpoint::open(converted.path()).map_err(|error| error.to_string())?;
        let device = Device::flex();
        let a = checkpoint.tensor::<2>("a.weight", [3, 2], FloatDType::F32, &device);
        let b = checkpoint.tensor::<1>("b", [4], FloatDType::F16, &device);
        let both = a.and_then(|a| Ok((a.into_data(), b?.into_data())));
        both.map_err(|error| error.to_string())
    };
    let whole_model = read_all().unwrap();
    for name in ["model.bpk", "config.json"] {
        let path = converted.path().join(name);
        let whole = fs::read(&path).unwrap();
        // A new file each time: the old one may be mapped.
        let replace = |bytes: &[u8]| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        };
        let mut found_errors = 0;
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            replace(&damaged);
            match read_all() {
                // The byte is padding, or the header still means the same.
                Ok(found) => assert_eq!(found, whole_model, "{name}: byte {place}"),
                Err(message) => {
                    assert!(message.contains(name), "{message}");
                    found_errors += 1;
                }
            }
        }
        let expected = whole.len().min(100);
        assert!(found_errors >= expected, "{name}: {found_errors}");
        for length in 0..whole.len() {
            replace(&whole[..length]);
            assert!(read_all().is_err(), "{name}: {length}");
        }
        fs::remove_file(&path).unwrap();
        let message = read_all().unwrap_err();
        assert!(message.contains(name), "{message}");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(read_all().unwrap(), whole_model);
}

#[test]
fn manifest_stays_inside_and_covers_every_tensor() {
    let weights = safetensors(&[("a.weight", Dtype::F32, &[3, 2], f32_bytes(&[0.5; 6]))]);
    let converted = convert(checkpoint(&weights).path());
    let path = converted.path().join("sparq.json");
    let whole = fs::read_to_string(&path).unwrap();
    let error = |from: &str, to: &str| {
        let changed = whole.replace(from, to);
        assert_ne!(changed, whole);
        fs::write(&path, changed).unwrap();
        Checkpoint::open(converted.path()).unwrap_err().to_string()
    };
    let message = error("\"config.json\"", "\"../config.json\"");
    assert_contains(&message, &["found none; convert the model again"]);
    let message = error("a.weight", "b.weight");
    let expected = "tensor \"a.weight\": expected a checksum in sparq.json, found none";
    assert_contains(&message, &[expected]);
    let message = error("\"transposed\": false", "\"transposed\": 1");
    assert_contains(&message, &["sparq.json", "invalid type"]);
}

#[test]
fn unusable_weights_are_refused() {
    let convert = |weights: &[u8], dtype| {
        let source = checkpoint(weights);
        let [out, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let conversion = Conversion::new(open(source.path())).with_dtype(dtype);
        let error = conversion.write(out.path()).unwrap_err().to_string();
        let safetensors = conversion.write_safetensors(other.path());
        assert_eq!(safetensors.unwrap_err().to_string(), error);
        // The remains are not taken for a model.
        assert!(Checkpoint::open(out.path()).is_err());
        error
    };
    let nan = safetensors(&[("a", Dtype::F32, &[2], f32_bytes(&[1.0, f32::NAN]))]);
    let message = convert(&nan, None);
    let expected = "tensor \"a\": expected finite weights, found 1 of 2";
    assert_contains(&message, &[expected]);
    let large = safetensors(&[("a", Dtype::F32, &[2], f32_bytes(&[1.0, 1e6]))]);
    let message = convert(&large, Some(StoredType::F16));
    assert_contains(&message, &["expected weights within the range of F16"]);
    let codes = safetensors(&[("a", Dtype::I8, &[2], vec![1, 2])]);
    let message = convert(&codes, None);
    assert_contains(&message, &["tensor \"a\": expected type F32, F16 or BF16"]);
}
