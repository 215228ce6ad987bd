//! The modules that a loader makes.

use crate::support::{f32_bytes, fixture, safetensors};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Int, Tensor},
};
use safetensors::Dtype;
use sparq_models::checkpoint::{Checkpoint, CheckpointError, Loader, Weights};

/// Makes a checkpoint with a linear layer from 3 to 2 features, an embedding of 2 tokens and a norm
/// of 3 features.
fn checkpoint() -> Checkpoint {
    let matrix = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    with_tensors(&[
        ("proj.weight", &[2, 3], &matrix),
        ("proj.bias", &[2], &[10.0, 20.0]),
        ("embed.weight", &[2, 3], &matrix),
        ("norm.weight", &[3], &[1.0, 2.0, -1.0]),
        ("layers.0.rotary_emb.inv_freq", &[1], &[1.0]),
    ])
}

fn with_tensors(tensors: &[(&str, &[usize], &[f32])]) -> Checkpoint {
    let tensors = tensors.iter();
    let tensors = tensors.map(|(name, shape, data)| (*name, Dtype::F32, *shape, f32_bytes(data)));
    let weights = safetensors(&tensors.collect::<Vec<_>>());
    Checkpoint::from_bytes("test", b"{}", weights).unwrap()
}

fn loader(checkpoint: &Checkpoint) -> Loader<'_> {
    Loader::new(checkpoint, &Device::default(), FloatDType::F32).unwrap()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn linear_multiplies_by_the_transpose_and_adds_bias() {
    let (checkpoint, device) = (checkpoint(), Device::default());
    let x = || Tensor::<2>::from_floats([[1.0, 0.0, -1.0], [1.0, 1.0, 1.0]], &device);
    let linear = loader(&checkpoint).linear("proj", 3, 2, true).unwrap();
    assert_eq!(linear.dims(), [3, 2]);
    assert_eq!(values(linear.forward(x())), [8.0, 18.0, 16.0, 35.0]);
    let linear = loader(&checkpoint).linear("proj", 3, 2, false).unwrap();
    assert_eq!(values(linear.forward(x())), [-2.0, -2.0, 6.0, 15.0]);
}

#[test]
fn linear_survives_its_own_record() {
    let (checkpoint, device) = (checkpoint(), Device::default());
    let linear = loader(&checkpoint).linear("proj", 3, 2, true).unwrap();
    let record = linear.clone().into_record();
    let other = burn::nn::LinearConfig::new(3, 2).init(&device);
    let other = other.load_record(record);
    assert_eq!(
        values(other.weight.val()),
        values(linear.float().unwrap().weight.val())
    );
    assert_eq!(values(other.weight.val()), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
}

#[test]
fn embedding_returns_rows_and_norm_scales() {
    let (checkpoint, device) = (checkpoint(), Device::default());
    let embedding = loader(&checkpoint).embedding("embed.weight", 2, 3).unwrap();
    let tokens = Tensor::<2, Int>::from_ints([[1, 0]], &device);
    let expected = [4.0, 5.0, 6.0, 1.0, 2.0, 3.0];
    assert_eq!(values(embedding.forward(tokens)), expected);
    let norm = loader(&checkpoint).rms_norm("norm", 3, 3.0, 0.0).unwrap();
    // The mean of the squares is 1, plus epsilon it is 4.
    let x = Tensor::<2>::from_floats([[1.0, 1.0, -1.0]], &device);
    assert_eq!(values(norm.forward(x)), [0.5, 1.0, 0.5]);
}

#[test]
fn layer_norm_centres_scales_and_shifts() {
    let bias = ("ln.bias", &[2][..], &[10.0, 20.0][..]);
    let checkpoint = with_tensors(&[("ln.weight", &[2], &[2.0, 3.0]), bias]);
    let norm = loader(&checkpoint).layer_norm("ln", 2, 8.0).unwrap();
    // The variance is 1 and epsilon 8: the centred values are divided by 3.
    let x = Tensor::<2>::from_floats([[4.0, 6.0]], &Device::default());
    let expected = [10.0 - 2.0 / 3.0, 20.0 + 1.0];
    for (found, expected) in values(norm.forward(x)).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn modules_count_their_parameters() {
    let checkpoint = checkpoint();
    let loader = loader(&checkpoint);
    let linear = loader.linear("proj", 3, 2, true).unwrap();
    let norm = loader.rms_norm("norm", 3, 1e-6, 0.0).unwrap();
    let embedding = loader.embedding("embed.weight", 2, 3).unwrap();
    assert_eq!((linear.num_params(), norm.num_params()), (8, 3));
    assert_eq!(embedding.num_params(), 6);
}

#[test]
fn large_linear_is_the_transpose_in_any_shape() {
    // Wide matrices, tall ones, and one whose last chunk has fewer rows than the others.
    for (rows, columns) in [
        (40, 3000),
        (3000, 40),
        (1, 50_000),
        (50_000, 1),
        (257, 1031),
    ] {
        let value = |row: usize, column: usize| ((row * 31 + column * 7) % 1999) as f32;
        let all = 0..rows * columns;
        let stored = all.clone().map(|at| value(at / columns, at % columns));
        let stored: Vec<_> = stored.collect();
        let checkpoint = with_tensors(&[("w.weight", &[rows, columns], &stored)]);
        let linear = loader(&checkpoint).linear("w", columns, rows, false);
        let weight = linear.unwrap().float().unwrap().weight.val();
        assert_eq!(weight.dims(), [columns, rows]);
        let expected: Vec<_> = all.map(|at| value(at % rows, at / rows)).collect();
        assert!(values(weight) == expected, "{rows} rows of {columns}");
    }
}

#[test]
fn non_finite_weight_is_located_as_stored() {
    let mut stored = vec![1.0; 100 * 3000];
    stored[70 * 3000 + 5] = f32::NAN;
    let checkpoint = with_tensors(&[("w.weight", &[100, 3000], &stored)]);
    let error = loader(&checkpoint).linear("w", 3000, 100, false);
    assert!(matches!(
        error.unwrap_err(),
        CheckpointError::NonFinite { index, count: 1, .. } if index == [70, 5]
    ));
}

#[cfg(feature = "autodiff")]
#[test]
fn modules_are_trainable() {
    let (checkpoint, device) = (checkpoint(), Device::default().autodiff());
    let loader = Loader::new(&checkpoint, &device, FloatDType::F32).unwrap();
    let linear = loader.linear("proj", 3, 2, true).unwrap();
    let norm = loader.rms_norm("norm", 3, 1e-6, 0.0).unwrap();
    let embedding = loader.embedding("embed.weight", 2, 3).unwrap();
    let tokens = Tensor::<2, Int>::from_ints([[1, 0]], &device);
    let y = linear.forward(norm.forward(embedding.forward(tokens)));
    let gradients = y.powf_scalar(2.0).sum().backward();
    for (name, gradient) in [
        (
            "weight",
            linear.float().unwrap().weight.val().grad(&gradients),
        ),
        (
            "embedding",
            embedding.float().unwrap().weight.val().grad(&gradients),
        ),
    ] {
        let gradient = gradient.unwrap_or_else(|| panic!("none for {name}"));
        assert!(gradient.abs().max().into_scalar::<f32>() > 1e-3, "{name}");
    }
    let vectors = [linear.bias().unwrap(), norm.gamma.val()];
    for vector in vectors {
        let gradient = vector.grad(&gradients).unwrap();
        assert!(gradient.abs().max().into_scalar::<f32>() > 1e-3);
    }
}

#[test]
fn loader_counts_bytes_and_names_unread_tensors() {
    let checkpoint = checkpoint();
    let loader = loader(&checkpoint);
    assert_eq!(loader.bytes_read(), 0);
    loader.linear("proj", 3, 2, false).unwrap();
    loader.rms_norm("norm", 3, 1e-6, 0.0).unwrap();
    assert_eq!(loader.bytes_read(), 4 * (6 + 3));
    // The table of RoPE frequencies is no weight and is not reported.
    assert_eq!(loader.finish(), ["embed.weight", "proj.bias"]);
}

#[test]
fn loader_reads_a_whole_checkpoint() {
    let checkpoint = Checkpoint::open(&fixture("llama3")).unwrap();
    let loader = Loader::new(&checkpoint, &Device::default(), FloatDType::F16).unwrap();
    let names: Vec<_> = checkpoint.names().collect();
    for name in names {
        match *checkpoint.entry(name).unwrap().shape {
            [n] => drop(loader.tensor::<1>(name, [n]).unwrap()),
            [m, n] => drop(loader.tensor::<2>(name, [m, n]).unwrap()),
            ref other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(loader.bytes_read(), checkpoint.num_bytes());
    assert_eq!(loader.finish(), Vec::<&str>::new());
}

#[test]
fn errors_name_the_tensor() {
    let checkpoint = checkpoint();
    let loader = loader(&checkpoint);
    assert!(matches!(
        loader.linear("proj", 2, 3, false).unwrap_err(),
        CheckpointError::Shape { tensor, expected, found, .. }
            if tensor == "proj.weight" && expected == [3, 2] && found == [2, 3]
    ));
    assert!(matches!(
        loader.linear("norm", 3, 1, true).unwrap_err(),
        CheckpointError::Shape { tensor, .. } if tensor == "norm.weight"
    ));
    assert!(matches!(
        loader.embedding("embed_tokens.weight", 2, 3).unwrap_err(),
        CheckpointError::MissingTensor { tensor, .. } if tensor == "embed_tokens.weight"
    ));
}
