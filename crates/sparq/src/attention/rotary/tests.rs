use burn::tensor::{Distribution, TensorData, Tolerance};

use super::*;

const LLAMA3: RotaryScaling = RotaryScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 64,
};

fn positions(values: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::<1, Int>::from_ints(values, device).unsqueeze()
}

fn assert_frequencies(config: &RotaryConfig, expected: &[f64]) {
    let found = config.frequencies().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) / expected - 1.0).abs() < 3e-7,
            "{found} instead of {expected}"
        );
    }
}

#[test]
fn pairs_are_half_a_head_apart() {
    let device = Device::default();
    let rotary = RotaryConfig::new(4).init(&device).unwrap();
    let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
    let y = rotary.apply(x, positions(&[3], &device));
    // By hand, for the angles 3 and 0.03.
    let expected = TensorData::from([[[[-1.413_352_5, 1.879_118, -2.828_857_5, 4.058_191]]]]);
    y.into_data()
        .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
}

#[test]
fn components_after_rotary_dim_are_unchanged() {
    let device = Device::default();
    let rotary = RotaryConfig::new(6)
        .with_rotary_dim(Some(2))
        .init(&device)
        .unwrap();
    let x = Tensor::<4>::from_floats([[[[1.0, 0.0, 3.0, 4.0, 5.0, 6.0]]]], &device);
    let y = rotary.apply(x, positions(&[1], &device));
    let expected = TensorData::from([[[[0.540_302_3, 0.841_471, 3.0, 4.0, 5.0, 6.0]]]]);
    y.into_data()
        .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
}

#[test]
fn unscaled_frequencies_are_powers_of_theta() {
    assert_frequencies(&RotaryConfig::new(8), &[1.0, 0.1, 0.01, 0.001]);
    assert_frequencies(
        &RotaryConfig::new(8).with_theta(256.0),
        &[1.0, 0.25, 0.0625, 0.015_625],
    );
}

#[test]
fn linear_scaling_divides_every_frequency() {
    assert_frequencies(
        &RotaryConfig::new(4).with_scaling(RotaryScaling::Linear { factor: 4.0 }),
        &[0.25, 0.0025],
    );
}

#[test]
fn llama3_scaling_blends_between_high_and_low() {
    // Wavelengths 6.28, 62.8, 628 and 6283: kept, blended, divided, divided.
    assert_frequencies(
        &RotaryConfig::new(8).with_scaling(LLAMA3),
        &[1.0, 0.013_042_256, 0.001_25, 0.000_125],
    );
}

#[test]
fn rotation_keeps_the_norm() {
    let device = Device::default();
    let rotary = RotaryConfig::new(16)
        .with_scaling(LLAMA3)
        .init(&device)
        .unwrap();
    let x = Tensor::<4>::random([2, 3, 5, 16], Distribution::Normal(0.0, 1.0), &device);
    let y = rotary.apply(x.clone(), positions(&[0, 1, 17, 900, 8191], &device));
    let norm = |t: Tensor<4>| t.square().sum_dim(3).sqrt().into_data();
    norm(y).assert_approx_eq::<f32>(&norm(x), Tolerance::absolute(1e-5));
}

#[test]
fn products_depend_on_the_distance_only() {
    let device = Device::default();
    let rotary = RotaryConfig::new(16)
        .with_rotary_dim(Some(12))
        .init(&device)
        .unwrap();
    let random = || Tensor::<4>::random([1, 1, 1, 16], Distribution::Normal(0.0, 1.0), &device);
    let (q, k) = (random(), random());
    let product = |at_q, at_k| {
        let q = rotary.apply(q.clone(), positions(&[at_q], &device));
        let k = rotary.apply(k.clone(), positions(&[at_k], &device));
        (q * k).sum().into_scalar::<f32>()
    };
    assert!((product(9, 2) - product(107, 100)).abs() < 1e-4);
    assert!(
        (product(9, 2) - product(9, 5)).abs() > 1e-2,
        "another distance gives another product"
    );
}

#[test]
fn sequences_have_their_own_positions() {
    let device = Device::default();
    let rotary = RotaryConfig::new(4).init(&device).unwrap();
    let x = Tensor::<4>::random([2, 1, 3, 4], Distribution::Normal(0.0, 1.0), &device);
    let both = rotary.apply(
        x.clone(),
        Tensor::from_ints([[0, 1, 2], [5, 6, 7]], &device),
    );
    let second = rotary.apply(x.slice_dim(0, 1..2), positions(&[5, 6, 7], &device));
    both.slice_dim(0, 1..2)
        .into_data()
        .assert_eq(&second.into_data(), true);
}

#[test]
fn half_precision_is_rotated_in_fp32() {
    let device = Device::default();
    if !device.supports_dtype(burn::tensor::DType::F16) {
        return;
    }
    let rotary = RotaryConfig::new(4).init(&device).unwrap();
    let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
    let at = positions(&[4097], &device);
    let exact = rotary.apply(x.clone(), at.clone());
    let half = rotary.apply(x.cast(FloatDType::F16), at);
    assert_eq!(half.dtype(), burn::tensor::DType::F16);
    half.cast(FloatDType::F32)
        .into_data()
        .assert_approx_eq::<f32>(&exact.into_data(), Tolerance::absolute(4e-3));
}

#[test]
fn invalid_settings_are_named() {
    let error = |config: RotaryConfig| config.init(&Device::default()).unwrap_err().to_string();
    let odd = RotaryConfig::new(8).with_rotary_dim(Some(3));
    let expected = "rotary_dim: expected an even number from 2 to 8 (the head_dim), found 3; \
                    set an even rotary_dim within the head_dim";
    assert_eq!(error(odd), expected);
    assert!(error(RotaryConfig::new(8).with_rotary_dim(Some(10))).contains("found 10"));
    assert!(error(RotaryConfig::new(8).with_rotary_dim(Some(0))).contains("found 0"));
    assert_eq!(
        error(RotaryConfig::new(8).with_theta(0.0)),
        "rotary theta: expected a positive number, found 0"
    );
    assert!(error(RotaryConfig::new(8).with_theta(f64::NAN)).contains("found NaN"));
    let linear = RotaryScaling::Linear { factor: -1.0 };
    assert_eq!(
        error(RotaryConfig::new(8).with_scaling(linear)),
        "rotary scaling factor: expected a positive number, found -1"
    );
    let crossed = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 4.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    let expected = "rotary scaling high_freq_factor: expected more than low_freq_factor, found 4";
    assert_eq!(error(RotaryConfig::new(8).with_scaling(crossed)), expected);
}
