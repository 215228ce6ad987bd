//! Weights in 8 and 4 bits: burn's quantisation, written and read.

use std::{path::Path, sync::Arc};

use crate::support::{assert_contains, checkpoint, f32_bytes, safetensors};
use burn::tensor::{
    Bytes, DType, Device, FloatDType, Tensor, TensorData,
    quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype},
};
use safetensors::{Dtype, SafeTensors};
use sparq_models::checkpoint::{Checkpoint, Conversion, Loader, StoredType, Weights};
use tempfile::TempDir;

/// Each type with burn's, and its largest code.
const TYPES: [(StoredType, QuantValue, f32); 2] = [
    (StoredType::Q8, QuantValue::Q8S, 127.0),
    (StoredType::Q4, QuantValue::Q4S, 7.0),
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
    let conversion = conversion.with_dtype(Some(dtype));
    conversion.write(out.path()).unwrap();
    out
}

/// Reads `proj.weight`.
fn read(checkpoint: &Checkpoint) -> Vec<f32> {
    let tensor = checkpoint.tensor("proj.weight", SHAPE, FloatDType::F32, &Device::flex());
    values::<2>(tensor.unwrap())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().unwrap()
}

#[test]
fn codes_and_weights_equal_those_of_burn() {
    let device = Device::flex();
    for (stored, value, _) in TYPES {
        let converted = convert(source().path(), stored);
        let checkpoint = Checkpoint::open(converted.path()).unwrap();
        assert_eq!(checkpoint.entry("proj.weight").unwrap().dtype, stored);

        let scheme = QuantScheme::default()
            .with_value(value)
            .per_block([1, 32], ScaleDtype::F16);
        let original = Tensor::<2>::from_data(TensorData::new(weights(), SHAPE), &device);
        let burn = values(original.quantize_dynamic(&scheme).dequantize());
        assert_eq!(read(&checkpoint), burn, "{stored}");

        // burn itself reads the file.
        let bytes = std::fs::read(converted.path().join("model.bpk")).unwrap();
        let pack = burn_pack::Reader::from_bytes(Bytes::from_bytes_vec(bytes)).unwrap();
        let mut tensors = pack.into_tensors().unwrap().into_iter();
        let tensor = tensors.find(|tensor| tensor.name == "proj.weight");
        let tensor = tensor.unwrap();
        let expected = DType::QFloat(scheme.with_store(QuantStore::PackedU32(0)));
        assert_eq!(tensor.dtype, expected);
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        let data = TensorData::from_bytes(tensor.into_bytes().unwrap(), shape, dtype);
        let found = values(Tensor::<2>::from_data(data, &device).dequantize());
        assert_eq!(found, burn, "{stored}");
    }
}

#[test]
fn weights_are_off_by_at_most_half_a_scale() {
    for (stored, _, codes) in TYPES {
        let converted = convert(source().path(), stored);
        let read = read(&Checkpoint::open(converted.path()).unwrap());
        let original = weights();
        let mut worst = 0.0_f32;
        for (read, original) in read.chunks_exact(32).zip(original.chunks_exact(32)) {
            let largest = original.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            // The scale is rounded up to 16 bits.
            let scale = largest / codes * (1.0 + 1.0 / 1024.0) + 1e-7;
            for (read, original) in read.iter().zip(original) {
                let error = (read - original).abs();
                assert!(
                    error <= scale / 2.0 + 1e-6,
                    "{stored}: {read} for {original}"
                );
                worst = worst.max(error / scale);
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
        let dtype = |name| checkpoint.entry(name).unwrap().dtype;
        let names = checkpoint.names();
        let types: Vec<_> = names
            .map(|name| format!("{name} {}", dtype(name)))
            .collect();
        types.join(", ")
    };
    for (stored, ..) in TYPES {
        let expected =
            "embed.weight Q8, norm.weight F16, odd.weight F32, proj.bias F32, proj.weight";
        assert_eq!(types(stored), format!("{expected} {stored}"));
    }
}

#[test]
fn layers_and_safetensors_have_the_same_weights() {
    for (stored, ..) in TYPES {
        let converted = convert(source().path(), stored);
        let checkpoint = Arc::new(Checkpoint::open(converted.path()).unwrap());
        let expected = read(&checkpoint);
        let loader = Loader::new(&checkpoint, &Device::flex(), FloatDType::F32).unwrap();
        let linear = loader.linear("proj", SHAPE[1], SHAPE[0], false).unwrap();
        let found = values(linear.float().unwrap().weight.val().transpose());
        assert_eq!(found, expected, "{stored}");

        let back = tempfile::tempdir().unwrap();
        Conversion::new(checkpoint.clone())
            .write_safetensors(back.path())
            .unwrap();
        let bytes = std::fs::read(back.path().join("model.safetensors")).unwrap();
        let view = SafeTensors::deserialize(&bytes).unwrap();
        let view = view.tensor("proj.weight").unwrap();
        assert_eq!((view.dtype(), view.shape()), (Dtype::F32, &SHAPE[..]));
        assert_eq!(view.data(), f32_bytes(&expected));
        let refused = Conversion::new(checkpoint)
            .with_dtype(Some(stored))
            .write_safetensors(tempfile::tempdir().unwrap().path());
        let message = refused.unwrap_err().to_string();
        assert_contains(&message, &["expected type F32, F16 or BF16"]);
    }
}

#[test]
fn blank_checkpoint_builds_layers_of_zeros() {
    for folder in [source(), convert(source().path(), StoredType::Q4)] {
        let blank = Checkpoint::open(folder.path()).unwrap().blank().unwrap();
        for dtype in [FloatDType::F32, FloatDType::F16] {
            let loader = Loader::new(&blank, &Device::flex(), dtype).unwrap();
            let linear = loader.linear("proj", SHAPE[1], SHAPE[0], false).unwrap();
            assert_eq!(linear.dims(), [SHAPE[1], SHAPE[0]]);
            assert_eq!(
                linear
                    .float()
                    .unwrap()
                    .weight
                    .val()
                    .abs()
                    .sum()
                    .into_scalar::<f32>(),
                0.0
            );
            let error = loader.linear("proj", SHAPE[0], SHAPE[1], false);
            let error = error.unwrap_err().to_string();
            assert_contains(&error, &["expected shape [96, 640], found [640, 96]"]);
            assert!(loader.linear("none", 1, 1, false).is_err());
        }
    }
}
