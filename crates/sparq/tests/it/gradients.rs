//! Dense attention is trainable: its gradients equal finite differences.

use burn::module::Param;
use burn::nn::{Linear, RmsNormConfig};
use burn::tensor::{Device, Distribution, FloatDType, Tensor, Tolerance};
use sparq::{Method, RotaryConfig, Sketch, SparqAttention, SparqAttentionConfig, SparqConfig};

use crate::common::{cache_config, new_cache};

const PROJECTIONS: [(&str, fn(&mut SparqAttention) -> &mut Linear); 4] = [
    ("q_proj", |attention| attention.q_proj.float_mut().unwrap()),
    ("k_proj", |attention| attention.k_proj.float_mut().unwrap()),
    ("v_proj", |attention| attention.v_proj.float_mut().unwrap()),
    ("o_proj", |attention| attention.o_proj.float_mut().unwrap()),
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

/// Returns a loss that weights every output differently.
fn loss(attention: &SparqAttention, x: &Tensor<3>, weights: &Tensor<3>) -> Tensor<1> {
    (attention.forward(x.clone(), None).unwrap() * weights.clone()).sum()
}

#[test]
fn projections_match_finite_differences() {
    let device = Device::default().autodiff();
    let mut attention = attention(&device);
    let (x, weights) = (
        random([2, 5, 6], &device).require_grad(),
        random([2, 5, 6], &device),
    );
    let gradients = loss(&attention, &x, &weights).backward();
    assert!(
        x.grad(&gradients).unwrap().abs().max().into_scalar::<f32>() > 1e-3,
        "the input must have a gradient"
    );

    for (name, projection) in PROJECTIONS {
        let weight = projection(&mut attention).weight.val();
        let gradient = weight
            .grad(&gradients)
            .unwrap_or_else(|| panic!("{name} must have a gradient"));
        let [rows, columns] = weight.dims();
        let gradient: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
        let largest = gradient
            .iter()
            .fold(0f32, |largest, value| largest.max(value.abs()));
        assert!(largest > 1e-2, "{name}: {largest}");
        let values: Vec<f32> = weight.clone().into_data().try_to_vec().unwrap();
        for element in [0, rows * columns / 2, rows * columns - 1] {
            let mut at = |delta: f32| {
                let mut values = values.clone();
                values[element] += delta;
                let changed =
                    Tensor::<1>::from_floats(values.as_slice(), &device).reshape([rows, columns]);
                projection(&mut attention).weight = Param::from_tensor(changed);
                loss(&attention, &x, &weights).into_scalar::<f32>()
            };
            // The difference has an error of order delta^2, and rounding adds 1e-6 / delta.
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
fn cached_keys_and_values_are_detached() {
    let device = Device::default().autodiff();
    let mut attention = attention(&device);
    let x = random([1, 5, 6], &device);
    let config = attention.cache_config(1, 8, FloatDType::F32, &Method::DENSE);
    let mut cache = new_cache(&config, &device);
    let y = attention.forward(x.clone(), Some(&mut cache)).unwrap();
    let step = attention
        .decode(x.clone().slice_dim(1, 0..1), &mut cache, &Method::DENSE)
        .unwrap();
    assert!(!cache.tensors().k.floats().is_autodiff());
    assert!(!cache.tensors().v.floats().is_autodiff());
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
        "projections with gradients: queries, keys, values, outputs"
    );
}

#[test]
fn residual_blocks_have_the_gradients_of_their_parts() {
    let device = Device::default().autodiff();
    let mut attention = attention(&device);
    let norm = RmsNormConfig::new(6).init(&device);
    let x = random([2, 5, 6], &device).require_grad();
    let weights = random([2, 5, 6], &device);
    let fused = attention.forward_residual(x.clone(), (&norm).into(), None);
    let parts = attention.forward(norm.forward(x.clone()), None).unwrap() + x.clone();
    let mut gradients = |y: Tensor<3>| {
        let gradients = (y * weights.clone()).sum().backward();
        let mut found = vec![x.grad(&gradients).unwrap().into_data()];
        found.push(norm.gamma.val().grad(&gradients).unwrap().into_data());
        for (_, projection) in PROJECTIONS {
            let weight = projection(&mut attention).weight.val();
            found.push(weight.grad(&gradients).unwrap().into_data());
        }
        found
    };
    let (found, expected) = (gradients(fused.unwrap()), gradients(parts));
    for (found, expected) in found.iter().zip(&expected) {
        found.assert_approx_eq::<f32>(expected, Tolerance::absolute(1e-4));
    }
}

#[test]
fn caches_accept_tensors_with_gradients() {
    let device = Device::default().autodiff();
    let random = |shape: [usize; 4]| {
        Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad()
    };
    for sketch in [Sketch::Full, Sketch::Bits4] {
        let method = Method::from(SparqConfig::new(4, 8).with_sketch(sketch));
        let config = cache_config([1, 2, 8], method.sketch());
        let mut cache = new_cache(&config, &device);
        let (k, v) = (random([1, 2, 40, 8]), random([1, 2, 40, 8]));
        let q = random([1, 4, 1, 8]);
        cache.append(k.clone(), v.clone()).unwrap();
        let mut plain = new_cache(&config, &device.clone().inner());
        plain.append(k.inner(), v.inner()).unwrap();
        let found = method.decode(q.clone(), &mut cache).unwrap();
        let expected = method.decode(q.inner(), &mut plain).unwrap();
        assert_eq!(found.into_data(), expected.into_data());
    }
}
