use burn::tensor::{Device, Distribution, FloatDType, Tensor, TensorData};

use super::{RowFormat, RowTensors, dequantize, quantize};

fn rows<const N: usize>(values: [f32; N]) -> Tensor<4> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), [1, 1, N / 4, 4]),
        &Device::default(),
    )
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[test]
fn codes_are_rounded_to_nearest_with_their_sign() {
    let (words, scale) = quantize(rows([127.0, -127.0, 0.5, -1.5, 0.0, 0.0, 0.0, 0.0]));
    assert_eq!(floats(scale.clone()), [1.0, 0.0]);
    let bytes: Vec<u32> = words.clone().into_data().iter::<u32>().collect();
    // Half to even: 127, -127, 0, -2.
    assert_eq!(bytes, [u32::from_le_bytes([127, 129, 0, 254]), 0]);
    let expected = [127.0, -127.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(floats(dequantize(words, scale)), expected);
}

#[test]
fn rounding_is_within_half_a_scale() {
    let device = Device::default();
    let x = Tensor::<4>::random([2, 3, 20, 64], Distribution::Normal(0.0, 3.0), &device);
    let (words, scale) = quantize(x.clone());
    assert_eq!(words.dims(), [2, 3, 20, 16]);
    let error = (x - dequantize(words, scale.clone())).abs().max_dim(3);
    let error = floats(error.squeeze_dim::<3>(3) / scale);
    assert!(error.iter().all(|&error| error < 0.5001), "{error:?}");
    assert!(error.iter().any(|&error| error > 0.4), "{error:?}");
}

#[test]
fn a_row_with_nan_or_infinity_reads_as_nan() {
    let x = rows([
        1.0,
        f32::NAN,
        0.0,
        2.0,
        1.0,
        2.0,
        f32::NEG_INFINITY,
        0.0,
        1.0,
        0.0,
        0.0,
        0.0,
    ]);
    let (words, scale) = quantize(x);
    let read = floats(dequantize(words, scale));
    assert!(read[..8].iter().all(|value| value.is_nan()), "{read:?}");
    assert_eq!(read[8..], [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn rows_are_written_read_and_counted() {
    let device = Device::default();
    let shape = [2, 3, 8, 16];
    let zeros = RowTensors::zeros(shape, RowFormat::Int8, FloatDType::F32, &device);
    assert_eq!((zeros.dims(), zeros.bytes()), (shape, 2 * 3 * 8 * (16 + 4)));
    let x = Tensor::<4>::random([1, 3, 2, 16], Distribution::Normal(0.0, 1.0), &device);
    let place = [1..2, 0..3, 5..7, 0..16];
    let (written, stored) = zeros.write(place.clone(), x);
    assert_eq!(floats(written.slice(place)), floats(stored.clone()));
    let at = written.at(5..7).slice_dim(0, 1..2);
    assert_eq!(floats(at), floats(stored.clone()));
    assert_eq!(written.at(3..3).dims(), [2, 3, 0, 16]);
    let index = Tensor::<3, _>::from_ints([[[0, 6]; 3], [[6, 5]; 3]], &device);
    for read in [written.take(&index), written.gather(&index)] {
        let last = read.slice([1..2, 0..3, 0..1, 0..16]);
        assert_eq!(floats(last), floats(stored.clone().slice_dim(2, 1..2)));
    }
    let grown = written.grown(64);
    assert_eq!(grown.dims(), [2, 3, 64, 16]);
    assert_eq!(
        floats(grown.at(0..64))
            .iter()
            .filter(|x| **x != 0.0)
            .count(),
        { floats(stored).iter().filter(|x| **x != 0.0).count() }
    );
}
