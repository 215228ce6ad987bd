//! The values of tensors: exact in the requested type, or an error that names the weight.

use crate::support::{bf16_bytes, checkpoint, f16_bytes, f32_bytes, fixture, safetensors};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use safetensors::{Dtype, SafeTensors};
use sparq_models::checkpoint::{Checkpoint, CheckpointError};

/// Exact in all three stored types.
const VALUES: [f32; 6] = [0.0, -1.5, 0.25, 3.0, -0.0078125, 96.0];

fn open(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Checkpoint {
    let weights = safetensors(&[("layer.weight", dtype, shape, bytes)]);
    Checkpoint::from_bytes("test", b"{}", weights).unwrap()
}

fn read(checkpoint: &Checkpoint, dtype: FloatDType) -> Result<Tensor<2>, CheckpointError> {
    checkpoint.tensor("layer.weight", [2, 3], dtype, &Device::default())
}

fn f32_values(tensor: Tensor<2>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_to_vec().unwrap()
}

#[test]
fn stored_types_read_as_every_float() {
    for (stored, bytes) in [
        (Dtype::F32, f32_bytes(&VALUES)),
        (Dtype::F16, f16_bytes(&VALUES)),
        (Dtype::BF16, bf16_bytes(&VALUES)),
    ] {
        let checkpoint = open(stored, &[2, 3], bytes);
        for dtype in [
            FloatDType::F64,
            FloatDType::F32,
            FloatDType::F16,
            FloatDType::BF16,
        ] {
            let tensor = read(&checkpoint, dtype).unwrap();
            assert_eq!(tensor.dtype(), DType::from(dtype));
            assert_eq!(tensor.dims(), [2, 3]);
            assert_eq!(f32_values(tensor), VALUES, "{stored} as {dtype:?}");
        }
    }
}

#[test]
fn narrower_types_round_to_nearest() {
    // Between 1 and the next f16 (1 + 2^-10) and the next bf16 (1 + 2^-7). Ties round to even.
    let power = |exponent: i32| 2f32.powi(exponent);
    let stored = [
        1.0 + power(-11),
        1.0 + 0.75 * power(-10),
        1.0 + power(-8),
        1.0 + 0.75 * power(-7),
        1e-9,
        65_519.0,
    ];
    let checkpoint = open(Dtype::F32, &[2, 3], f32_bytes(&stored));
    let values = |dtype| f32_values(read(&checkpoint, dtype).unwrap());
    let f16 = [
        1.0,
        1.0 + power(-10),
        1.0 + power(-8),
        1.0 + 6.0 * power(-10),
        0.0,
        65_504.0,
    ];
    assert_eq!(values(FloatDType::F16), f16);
    let bf16 = values(FloatDType::BF16);
    assert_eq!(bf16[..4], [1.0, 1.0, 1.0, 1.0 + power(-7)]);
    assert_eq!(bf16[5], 65_536.0);
}

#[test]
fn long_tensors_are_read_in_chunks() {
    let (rows, columns) = (1000, 257);
    let value = |at: usize| (at % 2039) as f32 - 1000.0;
    let values: Vec<_> = (0..rows * columns).map(value).collect();
    for (stored, bytes) in [
        (Dtype::F32, f32_bytes(&values)),
        (Dtype::F16, f16_bytes(&values)),
    ] {
        let dir = checkpoint(&safetensors(&[
            ("front", Dtype::F16, &[3], f16_bytes(&[1.0; 3])),
            ("w", stored, &[rows, columns], bytes),
        ]));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let tensor = checkpoint.tensor("w", [rows, columns], FloatDType::F32, &Device::default());
        assert_eq!(f32_values(tensor.unwrap()), values);
    }
}

#[test]
fn shards_equal_the_reference_reader() {
    let checkpoint = Checkpoint::open(&fixture("llama2")).unwrap();
    let names: Vec<_> = checkpoint.names().map(String::from).collect();
    let mut compared = 0;
    for name in names {
        let entry = checkpoint.entry(&name).unwrap();
        let (file, shape) = (std::fs::read(entry.file).unwrap(), entry.shape.to_vec());
        let reference = SafeTensors::deserialize(&file).unwrap();
        let device = Device::default();
        let dtype = FloatDType::F32;
        let read = match shape[..] {
            [n] => checkpoint
                .tensor::<1>(&name, [n], dtype, &device)
                .map(Tensor::into_data),
            [m, n] => checkpoint
                .tensor::<2>(&name, [m, n], dtype, &device)
                .map(Tensor::into_data),
            _ => panic!("{name}: {shape:?}"),
        };
        let found = f32_bytes(&read.unwrap().try_to_vec().unwrap());
        assert_eq!(found, reference.tensor(&name).unwrap().data(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 30);
    assert_eq!(checkpoint.unused().count(), 0);
}

#[test]
fn wrong_shape_is_named_with_both_shapes() {
    let checkpoint = open(Dtype::F32, &[3, 2], f32_bytes(&VALUES));
    let error = read(&checkpoint, FloatDType::F32).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test/model.safetensors: tensor \"layer.weight\": expected shape [2, 3], found [3, 2]"
    );
    // The number of dimensions matters as well.
    let checkpoint = open(Dtype::F32, &[6], f32_bytes(&VALUES));
    let error = read(&checkpoint, FloatDType::F32).unwrap_err();
    assert!(matches!(error, CheckpointError::Shape { .. }));
}

#[test]
fn missing_tensor_is_named() {
    let checkpoint = open(Dtype::F32, &[2, 3], f32_bytes(&VALUES));
    let device = Device::default();
    let tensor = checkpoint.tensor("layer.bias", [2], FloatDType::F32, &device);
    assert_eq!(
        tensor.unwrap_err().to_string(),
        "test/model.safetensors: tensor \"layer.bias\": expected shape [2], found no tensor of that name"
    );
}

#[test]
fn unsupported_type_is_named() {
    let checkpoint = open(Dtype::I8, &[2, 3], vec![0; 6]);
    let error = read(&checkpoint, FloatDType::F32).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test/model.safetensors: tensor \"layer.weight\": expected type F32, F16 or BF16, found I8"
    );
}

#[test]
fn non_finite_weights_are_counted_and_located() {
    let mut values = VALUES;
    values[4] = f32::NAN;
    values[5] = f32::NEG_INFINITY;
    for (stored, bytes) in [
        (Dtype::F32, f32_bytes(&values)),
        (Dtype::F16, f16_bytes(&values)),
        (Dtype::BF16, bf16_bytes(&values)),
    ] {
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            let error = read(&open(stored, &[2, 3], bytes.clone()), dtype).unwrap_err();
            assert_eq!(
                error.to_string(),
                "test/model.safetensors: tensor \"layer.weight\": expected finite weights, \
                 found 2 of 6 that are not, the first NaN at [1, 1]"
            );
        }
    }
}

#[test]
fn non_finite_weights_are_found_in_later_chunks() {
    let mut values = vec![0.5; 300_000];
    for at in [70_001, 70_002, 299_999] {
        values[at] = f32::INFINITY;
    }
    let checkpoint = open(Dtype::F32, &[300, 1000], f32_bytes(&values));
    let device = Device::default();
    let tensor = checkpoint.tensor("layer.weight", [300, 1000], FloatDType::F32, &device);
    assert!(matches!(
        tensor.unwrap_err(),
        CheckpointError::NonFinite { index, count: 3, total: 300_000, value: f32::INFINITY, .. }
            if index == [70, 1]
    ));
}

#[test]
fn overflow_differs_from_infinity() {
    let mut values = VALUES;
    values[2] = -1e6;
    let checkpoint = open(Dtype::BF16, &[2, 3], bf16_bytes(&values));
    assert!(read(&checkpoint, FloatDType::F32).is_ok());
    assert!(read(&checkpoint, FloatDType::BF16).is_ok());
    assert!(matches!(
        read(&checkpoint, FloatDType::F16).unwrap_err(),
        CheckpointError::OutOfRange { index, count: 1, dtype: FloatDType::F16, value, .. }
            if index == [0, 2] && (value + 1e6).abs() < 1e4
    ));
}

#[test]
fn unread_tensors_are_listed() {
    let tensors = ["a", "b", "c"].map(|name| (name, Dtype::F32, &[1][..], f32_bytes(&[1.0])));
    let weights = safetensors(&tensors);
    let checkpoint = Checkpoint::from_bytes("test", b"{}", weights).unwrap();
    assert_eq!(checkpoint.unused().collect::<Vec<_>>(), ["a", "b", "c"]);
    let device = Device::default();
    let tensor = checkpoint.tensor::<1>("b", [1], FloatDType::F32, &device);
    assert!(tensor.is_ok());
    checkpoint.ignore("c");
    assert_eq!(checkpoint.unused().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn file_truncated_while_open_is_an_error() {
    let tensor = ("layer.weight", Dtype::F32, &[2, 3][..], f32_bytes(&VALUES));
    let dir = checkpoint(&safetensors(&[tensor]));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    let file = std::fs::File::options().write(true).open(path);
    file.unwrap().set_len(100).unwrap();
    let error = read(&checkpoint, FloatDType::F32).unwrap_err();
    assert!(matches!(error, CheckpointError::Read { .. }));
}

#[cfg(feature = "ndarray")]
#[test]
fn unsupported_device_type_is_named() {
    #[allow(deprecated)] // the backend is
    let device = Device::ndarray();
    let checkpoint = open(Dtype::F16, &[2, 3], f16_bytes(&VALUES));
    let tensor = |dtype| checkpoint.tensor::<2>("layer.weight", [2, 3], dtype, &device);
    assert!(tensor(FloatDType::F32).is_ok());
    let error = tensor(FloatDType::F16).unwrap_err();
    assert!(matches!(error, CheckpointError::DeviceType { .. }));
    assert!(error.to_string().contains("F16"), "{error}");
}
