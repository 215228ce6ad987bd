//! Dense attention stays trainable: its gradients are those that finite differences find.
#![cfg(feature = "autodiff")]

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::{
    KvCacheConfig, Method, RotaryConfig, Sketch, SparqAttention, SparqAttentionConfig, SparqConfig,
};

const PROJECTIONS: [(&str, fn(&mut SparqAttention) -> &mut Linear); 4] = [
    ("q_proj", |attention| &mut attention.q_proj),
    ("k_proj", |attention| &mut attention.k_proj),
    ("v_proj", |attention| &mut attention.v_proj),
    ("o_proj", |attention| &mut attention.o_proj),
];

fn attention(device: &Device) -> SparqAttention {
    let rotary = RotaryConfig::new(4).with_rotary_dim(Some(2));
    SparqAttentionConfig::new(6, 4, 2, 4)
        .with_rotary(Some(rotary))
        .with_qkv_bias(true)
        .init(device)
        .unwrap()
}

fn random(shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// A loss that weighs every output differently.
fn loss(attention: &SparqAttention, x: &Tensor<3>, weights: &Tensor<3>) -> Tensor<1> {
    (attention.forward(x.clone(), None).unwrap() * weights.clone()).sum()
}

#[test]
fn gradients_of_every_projection_equal_finite_differences() {
    let device = Device::default().autodiff();
    let mut attention = attention(&device);
    let (x, weights) = (
        random([2, 5, 6], &device).require_grad(),
        random([2, 5, 6], &device),
    );
    let gradients = loss(&attention, &x, &weights).backward();
    assert!(
        x.grad(&gradients).unwrap().abs().max().into_scalar::<f32>() > 1e-3,
        "none for the input"
    );

    for (name, projection) in PROJECTIONS {
        let weight = projection(&mut attention).weight.val();
        let gradient = weight
            .grad(&gradients)
            .unwrap_or_else(|| panic!("none for {name}"));
        let [rows, columns] = weight.dims();
        let gradient: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
        let largest = gradient
            .iter()
            .fold(0f32, |largest, value| largest.max(value.abs()));
        assert!(largest > 1e-2, "{name}: {largest}");
        let values: Vec<f32> = weight.clone().into_data().try_to_vec().unwrap();
        for element in [0, rows * columns / 2, rows * columns - 1] {
            let mut at = |step: f32| {
                let mut values = values.clone();
                values[element] += step;
                let changed =
                    Tensor::<1>::from_floats(values.as_slice(), &device).reshape([rows, columns]);
                projection(&mut attention).weight = Param::from_tensor(changed);
                loss(&attention, &x, &weights).into_scalar::<f32>()
            };
            // The error of the difference is of order step^2, that of rounding 1e-6 / step.
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            let error = (difference - gradient[element]).abs();
            assert!(
                error < 2e-3 * largest.max(1.0),
                "{name}[{element}]: {} instead of {difference}",
                gradient[element]
            );
        }
        projection(&mut attention).weight = Param::from_tensor(weight);
    }
}

#[test]
fn what_a_cache_stores_is_detached() {
    let device = Device::default().autodiff();
    let mut attention = attention(&device);
    let x = random([1, 5, 6], &device);
    let config = attention.cache_config(1, 8, FloatDType::F32, &Method::DENSE);
    let mut cache = config.init(&device).unwrap();
    let y = attention.forward(x.clone(), Some(&mut cache)).unwrap();
    let step = attention
        .decode(x.clone().slice_dim(1, 0..1), &mut cache, &Method::DENSE)
        .unwrap();
    assert!(!cache.tensors().k.is_autodiff() && !cache.tensors().v.is_autodiff());
    let whole = attention.forward(x, None).unwrap();
    assert!((y.clone() - whole).abs().max().into_scalar::<f32>() < 1e-5);

    let gradients = (y.sum() + step.sum()).backward();
    let found = PROJECTIONS.map(|(_, projection)| {
        projection(&mut attention)
            .weight
            .val()
            .grad(&gradients)
            .is_some()
    });
    assert_eq!(
        found,
        [true, false, false, true],
        "of the projections of queries, keys, values and outputs"
    );
}

#[test]
fn a_cache_takes_tensors_that_are_differentiated() {
    let device = Device::default().autodiff();
    let random = |shape: [usize; 4]| {
        Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad()
    };
    for sketch in [Sketch::Full, Sketch::Bits4] {
        let method = Method::from(SparqConfig::new(4, 8).with_sketch(sketch));
        let config = KvCacheConfig::new(1, 2, 8)
            .with_capacity(4)
            .with_dtype(FloatDType::F32)
            .with_sketch(method.sketch());
        let mut cache = config.init(&device).unwrap();
        let (k, v) = (random([1, 2, 40, 8]), random([1, 2, 40, 8]));
        let q = random([1, 4, 1, 8]);
        cache.append(k.clone(), v.clone()).unwrap();
        let mut plain = config.init(&device.clone().inner()).unwrap();
        plain.append(k.inner(), v.inner()).unwrap();
        let found = method.decode(q.clone(), &mut cache).unwrap();
        let expected = method.decode(q.inner(), &mut plain).unwrap();
        assert_eq!(found.into_data(), expected.into_data());
    }
}
