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

/// Settings with a context of 1024 positions in training, for heads of 12 components.
fn long(scaling: RotaryScaling) -> RotaryConfig {
    RotaryConfig::new(12).with_scaling(scaling)
}

fn yarn(truncate: bool, [beta_fast, beta_slow]: [f64; 2], attention_factor: f64) -> RotaryScaling {
    RotaryScaling::Yarn {
        factor: 8.0,
        beta_fast,
        beta_slow,
        truncate,
        original_max_position_embeddings: 1024,
        attention_factor,
    }
}

fn longrope() -> RotaryScaling {
    RotaryScaling::LongRope {
        short_factor: vec![1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
        long_factor: vec![1.2, 1.9, 3.5, 6.0, 9.0, 20.0],
        original_max_position_embeddings: 1024,
        attention_factor: 1.095_445,
    }
}

fn dynamic() -> RotaryScaling {
    RotaryScaling::Dynamic {
        factor: 4.0,
        original_max_position_embeddings: 4096,
    }
}

#[test]
fn scaled_frequencies_equal_transformers() {
    let cases = [
        (
            yarn(true, [32.0, 1.0], 1.2),
            1,
            [
                1.0,
                0.215_443_45,
                0.032_877_915,
                0.004_166_666_4,
                2.693_043e-4,
                5.801_987e-5,
            ],
        ),
        (
            yarn(false, [16.0, 2.0], 1.1),
            1,
            [
                1.0,
                0.215_443_45,
                0.031_784_948,
                0.001_25,
                2.693_043e-4,
                5.801_987e-5,
            ],
        ),
        (
            dynamic(),
            4096,
            [
                1.0,
                0.215_443_45,
                0.046_415_884,
                0.01,
                0.002_154_434_3,
                4.641_589_5e-4,
            ],
        ),
        (
            dynamic(),
            10_000,
            [
                1.0,
                0.146_984_56,
                0.021_604_461,
                0.003_175_523_1,
                4.667_527_7e-4,
                6.860_548e-5,
            ],
        ),
        (
            longrope(),
            1024,
            [
                1.0,
                0.195_857_69,
                0.035_704_527,
                0.005_882_353,
                0.001_077_217_2,
                1.856_635_8e-4,
            ],
        ),
        (
            longrope(),
            2000,
            [
                0.833_333_3,
                0.113_391_295,
                0.013_261_68,
                0.001_666_666_7,
                2.393_816e-4,
                2.320_794_7e-5,
            ],
        ),
    ];
    for (scaling, len, expected) in cases {
        let found = long(scaling.clone()).frequencies_within(len).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            let ratio = f64::from(*found) / expected;
            assert!(
                (ratio - 1.0).abs() < 1e-6,
                "{scaling:?} {len}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn tables_follow_the_length() {
    let device = Device::default();
    let difference = |rotary: &Rotary, len: usize, [row, seq_len, capacity]: [usize; 3]| {
        let angles = rotary.angles_within(positions(&[row as i32], &device), seq_len, capacity);
        let own = Tensor::cat(vec![angles.cos, angles.sin], 3).reshape([1, 12]);
        let table = rotary.table(len).slice_dim(0, row..row + 1);
        (table - own).abs().max().into_scalar::<f32>()
    };
    // A row of dynamic NTK is that of the sequence which ends there, whatever the capacity.
    let growing = long(dynamic()).init(&device).unwrap();
    for row in [10, 4095, 4096, 4999] {
        assert!(
            difference(&growing, 5000, [row, row + 1, 5000]) < 1e-5,
            "{row}"
        );
    }
    assert!(difference(&growing, 5000, [4999, 4096, 4096]) > 0.1);
    // One table of LongRoPE has one set, also after a table of the other set.
    let rotary = long(longrope()).init(&device).unwrap();
    for capacity in [1024, 1088, 64] {
        assert!(
            difference(&rotary, capacity, [60, 61, capacity]) < 1e-5,
            "{capacity}"
        );
    }
    assert!(difference(&rotary, 1088, [60, 61, 64]) > 0.1);
}

#[test]
fn attention_factor_scales_the_rotated_components() {
    let device = Device::default();
    let x = || Tensor::<4>::ones([1, 1, 1, 14], &device);
    let config = RotaryConfig::new(14).with_rotary_dim(Some(12));
    let rotated = |factor| {
        let scaling = yarn(true, [32.0, 1.0], factor);
        let rotary = config.clone().with_scaling(scaling).init(&device).unwrap();
        rotary.apply(x(), positions(&[77], &device))
    };
    let (one, other) = (rotated(1.0), rotated(1.25));
    let expected = Tensor::cat(
        vec![one.slice_dim(3, 0..12) * 1.25, x().slice_dim(3, 12..14)],
        3,
    );
    other
        .into_data()
        .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-6));
}

#[test]
fn unusable_scalings_are_refused() {
    let few = RotaryScaling::LongRope {
        short_factor: vec![1.0; 6],
        long_factor: vec![1.0; 5],
        original_max_position_embeddings: 8,
        attention_factor: 1.0,
    };
    let shrinks = RotaryScaling::Dynamic {
        factor: 0.5,
        original_max_position_embeddings: 8,
    };
    let cases = [
        (
            few,
            "rotary scaling long_factor: expected 6 numbers (one per pair), found 5",
        ),
        (
            shrinks,
            "factor of dynamic rotary scaling: expected at least 1, found 0.5",
        ),
        (
            yarn(true, [0.0, 1.0], 1.0),
            "rotary scaling beta_fast: expected a positive number, found 0",
        ),
    ];
    for (scaling, expected) in cases {
        let error = long(scaling).init(&Device::default()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
