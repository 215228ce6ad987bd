//! Weights in 8 and 4 bits: burn's quantisation, written and read.

use std::{path::Path, sync::Arc};

use crate::support::{checkpoint, f32_bytes, safetensors};
use burn::tensor::{
    Bytes, DType, Device, FloatDType, Tensor, TensorData,
    quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype},
};
use safetensors::{Dtype, SafeTensors};
use sparq_models::checkpoint::{Checkpoint, Conversion, Loader, StoredType, Weights};
use tempfile::TempDir;

const TYPES: [(StoredType, StoredType, QuantValue); 2] = [
    (StoredType::Q8, StoredType::Q8, QuantValue::Q8S),
    (StoredType::Q4, StoredType::Q4, QuantValue::Q4S),
];

/// A matrix of several chunks, with several blocks in a row.
const SHAPE: [usize; 2] = [640, 96];

/// Returns scattered numbers in (-1, 1) whose magnitude differs from block to block. The first
/// block is all zeros.
fn weights() -> Vec<f32> {
    let scatter = |index: usize| ((index * 7919) % 1999) as f32 / 1000.0 - 1.0;
    let size = |index: usize| ((index / 32) % 50) as f32 / 50.0;
    (0..SHAPE[0] * SHAPE[1])
        .map(|index| scatter(index) * size(index))
        .collect()
}

fn source() -> TempDir {
    let short = f32_bytes(&[0.5; 33]);
    checkpoint(&safetensors(&[
        ("proj.weight", Dtype::F32, &SHAPE, f32_bytes(&weights())),
        ("embed.weight", Dtype::F32, &SHAPE, f32_bytes(&weights())),
        ("odd.weight", Dtype::F32, &[1, 33], short.clone()),
        ("norm.weight", Dtype::F16, &[32], vec![0; 64]),
        ("proj.bias", Dtype::F32, &[33], short),
    ]))
}

fn convert(source: &Path, dtype: StoredType) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let conversion = Conversion::new(Arc::new(Checkpoint::open(source).unwrap()));
    conversion
        .with_dtype(Some(dtype))
        .write(out.path())
        .unwrap();
    out
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().unwrap()
}

#[test]
fn codes_and_weights_equal_those_of_burn() {
    let device = Device::flex();
    for (dtype, stored, value) in TYPES {
        let converted = convert(source().path(), dtype);
        let checkpoint = Checkpoint::open(converted.path()).unwrap();
        assert_eq!(checkpoint.entry("proj.weight").unwrap().dtype, stored);
        let read = checkpoint
            .tensor::<2>("proj.weight", SHAPE, FloatDType::F32, &device)
            .unwrap();
        let read = values(read);

        let scheme = QuantScheme::default()
            .with_value(value)
            .per_block([1, 32], ScaleDtype::F16);
        let original = Tensor::<2>::from_data(TensorData::new(weights(), SHAPE), &device);
        let burn = values(original.quantize_dynamic(&scheme).dequantize());
        assert_eq!(read, burn, "{stored}");

        // burn itself reads the file.
        let bytes =
            Bytes::from_bytes_vec(std::fs::read(converted.path().join("model.bpk")).unwrap());
        let tensors = burn_pack::Reader::from_bytes(bytes)
            .unwrap()
            .into_tensors()
            .unwrap();
        let tensor = tensors
            .into_iter()
            .find(|tensor| tensor.name == "proj.weight")
            .unwrap();
        assert_eq!(
            tensor.dtype,
            DType::QFloat(scheme.with_store(QuantStore::PackedU32(0)))
        );
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        let data = TensorData::from_bytes(tensor.into_bytes().unwrap(), shape, dtype);
        assert_eq!(
            values(Tensor::<2>::from_data(data, &device).dequantize()),
            burn,
            "{stored}"
        );
    }
}

#[test]
fn weights_are_off_by_at_most_half_a_scale() {
    for (dtype, stored, codes) in [
        (StoredType::Q8, StoredType::Q8, 127.0),
        (StoredType::Q4, StoredType::Q4, 7.0),
    ] {
        let converted = convert(source().path(), dtype);
        let checkpoint = Checkpoint::open(converted.path()).unwrap();
        let read = checkpoint.tensor::<2>("proj.weight", SHAPE, FloatDType::F32, &Device::flex());
        let (read, original) = (values(read.unwrap()), weights());
        let mut worst = 0.0_f32;
        for (read, original) in read.chunks_exact(32).zip(original.chunks_exact(32)) {
            let largest = original
                .iter()
                .fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
            // The scale is rounded up to 16 bits.
            let scale = largest / codes * (1.0 + 1.0 / 1024.0) + 1e-7;
            for (read, original) in read.iter().zip(original) {
                assert!(
                    (read - original).abs() <= scale / 2.0 + 1e-6,
                    "{stored}: {read} for {original}"
                );
                worst = worst.max((read - original).abs() / scale);
            }
        }
        // The weights are really quantised.
        assert!(worst > 0.4, "{stored}: {worst}");
    }
}

#[test]
fn unsuitable_tensors_keep_their_type() {
    let types = |dtype| {
        let converted = convert(source().path(), dtype);
        let checkpoint = Checkpoint::open(converted.path()).unwrap();
        let types = checkpoint
            .names()
            .map(|name| (name.to_owned(), checkpoint.entry(name).unwrap().dtype));
        types
            .map(|(name, dtype)| format!("{name} {dtype}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(
        types(StoredType::Q8),
        "embed.weight Q8, norm.weight F16, odd.weight F32, proj.bias F32, proj.weight Q8"
    );
    assert_eq!(
        types(StoredType::Q4),
        "embed.weight Q8, norm.weight F16, odd.weight F32, proj.bias F32, proj.weight Q4"
    );
}

#[test]
fn layers_and_safetensors_have_the_same_weights() {
    for (dtype, stored, _) in TYPES {
        let converted = convert(source().path(), dtype);
        let checkpoint = Arc::new(Checkpoint::open(converted.path()).unwrap());
        let device = Device::flex();
        let expected = values(
            checkpoint
                .tensor::<2>("proj.weight", SHAPE, FloatDType::F32, &device)
                .unwrap(),
        );
        let loader = Loader::new(&checkpoint, &device, FloatDType::F32).unwrap();
        let linear = loader.linear("proj", SHAPE[1], SHAPE[0], false).unwrap();
        assert_eq!(
            values(linear.weight.val().transpose()),
            expected,
            "{stored}"
        );

        let back = tempfile::tempdir().unwrap();
        Conversion::new(checkpoint.clone())
            .write_safetensors(back.path())
            .unwrap();
        let bytes = std::fs::read(back.path().join("model.safetensors")).unwrap();
        let view = SafeTensors::deserialize(&bytes).unwrap();
        let view = view.tensor("proj.weight").unwrap();
        assert_eq!(
            (view.dtype(), view.shape(), view.data()),
            (Dtype::F32, &SHAPE[..], &f32_bytes(&expected)[..])
        );
        let refused = Conversion::new(checkpoint)
            .with_dtype(Some(dtype))
            .write_safetensors(tempfile::tempdir().unwrap().path());
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("expected type F32, F16 or BF16")
        );
    }
}

#[test]
fn blank_checkpoint_builds_layers_of_zeros() {
    for folder in [source(), convert(source().path(), StoredType::Q4)] {
        let blank = Checkpoint::open(folder.path()).unwrap().blank().unwrap();
        for dtype in [FloatDType::F32, FloatDType::F16] {
            let loader = Loader::new(&blank, &Device::flex(), dtype).unwrap();
            let linear = loader.linear("proj", SHAPE[1], SHAPE[0], false).unwrap();
            assert_eq!(linear.weight.dims(), [SHAPE[1], SHAPE[0]]);
            assert_eq!(linear.weight.val().abs().sum().into_scalar::<f32>(), 0.0);
            let error = loader
                .linear("proj", SHAPE[0], SHAPE[1], false)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("expected shape [96, 640], found [640, 96]"),
                "{error}"
            );
            assert!(loader.linear("none", 1, 1, false).is_err());
        }
    }
}
