//! Models of every family: random weights, old files, sliding windows, half precision and training.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Int, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sparq::{KvCache, Method, SparqConfig};
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{CausalLm, Decoder, DecoderConfig, ModelCache};

/// One fixture of each family, in `tests/fixtures/hf`.
const FAMILIES: [&str; 14] = [
    "llama3",
    "mistral_sliding",
    "gemma_mqa",
    "gpt_neox",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "olmo2",
    "granite",
    "qwen3_moe",
    "mixtral",
];

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hf");

fn config(name: &str) -> (Checkpoint, DecoderConfig) {
    let checkpoint = Checkpoint::open(&Path::new(FIXTURES).join(name)).unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    (checkpoint, config)
}

fn tokens(len: i64, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = (0..len).map(|at| (at * 37 + 11) % 48).collect();
    Tensor::<1, Int>::from_ints(ids.as_slice(), device).unsqueeze()
}

fn new_cache(model: &Decoder, capacity: usize, method: &Method) -> ModelCache {
    let cache = model.new_cache(1, capacity, FloatDType::F32, method);
    cache.unwrap()
}

/// Returns the logits of every position after one prefill.
fn prefill(model: &Decoder, len: usize) -> Vec<f32> {
    let mut cache = new_cache(model, len, &Method::DENSE);
    let tokens = tokens(len as i64, &model.device());
    values(model.prefill(tokens, &mut cache, len).unwrap())
}

fn values(logits: Tensor<3>) -> Vec<f32> {
    logits.into_data().try_to_vec().unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { d } else { worst.max(d) })
}

#[test]
fn random_weights_give_small_logits() {
    let device = Device::default();
    device.seed(3);
    for name in FAMILIES {
        let (_, mut config) = config(name);
        // With tied embeddings the logit of the last token is larger than the others.
        config.tie_word_embeddings = false;
        (config.logits_scale, config.logits_softcap) = (None, None);
        let model = Decoder::init(&config, FloatDType::F32, &device).unwrap();
        let logits = prefill(&model, 20);
        // The last norm gives vectors of length sqrt(D), the head has a standard deviation of 0.02.
        // So norms scale by 1, also in Gemma, which stores 0 for it.
        let square = logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32;
        let expected = 0.02 * (config.hidden_size as f32).sqrt();
        let ratio = square.sqrt() / expected;
        assert!((ratio - 1.0).abs() < 0.2, "{name}: {ratio}");
    }
}

#[test]
fn constants_of_old_files_are_ignored() {
    for name in FAMILIES {
        let path = Path::new(FIXTURES).join(name);
        let read = |file: &str| std::fs::read(path.join(file)).unwrap();
        let (weights, json) = (read("model.safetensors"), read("config.json"));
        let file = SafeTensors::deserialize(&weights).unwrap();
        let mut tensors = file.tensors();
        if name == "gpt_neox" {
            for (constant, dtype, bytes) in [
                ("bias", Dtype::BOOL, [1u8].as_slice()),
                ("masked_bias", Dtype::F32, &[0; 4]),
                ("rotary_emb.inv_freq", Dtype::F32, &[0; 4]),
            ] {
                let view = TensorView::new(dtype, vec![1], bytes).unwrap();
                tensors.push((format!("gpt_neox.layers.1.attention.{constant}"), view));
            }
        }
        let weights = safetensors::serialize(tensors, None).unwrap();
        let checkpoint = Checkpoint::from_bytes(name, &json, weights).unwrap();
        let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
        Decoder::load(&checkpoint, &config, FloatDType::F32, &Device::default()).unwrap();
        let unused: Vec<_> = checkpoint.unused().collect();
        match name {
            "gpt_neox" => assert_eq!(unused, ["gpt_neox.layers.1.attention.rotary_emb.inv_freq"]),
            _ => assert!(unused.is_empty(), "{name}: {unused:?}"),
        }
    }
}

#[test]
fn each_layer_has_its_own_window() {
    let device = Device::default();
    let (checkpoint, full) = config("qwen2");
    let load = |windows: &[Option<usize>]| {
        let config = DecoderConfig {
            windows: windows.to_vec(),
            ..full.clone()
        };
        Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap()
    };
    let (none, some) = (load(&[]), load(&[None, Some(24)]));
    let (unbounded, found) = (prefill(&none, 60), prefill(&some, 60));
    let inside = 24 * none.vocab_size();
    assert!(difference(&unbounded[..inside], &found[..inside]) < 1e-5);
    assert!(difference(&unbounded[inside..], &found[inside..]) > 1e-3);
    let all = prefill(&load(&[Some(24); 3]), 60);
    assert!(difference(&all, &found) > 1e-3);

    for method in [Method::DENSE, SparqConfig::new(2, 60).into()] {
        let mut cache = new_cache(&some, 1, &method);
        let windows = cache.layers.iter().map(|layer| layer.config().window);
        assert!(windows.eq([None, Some(24), None]));
        let tokens = tokens(60, &device);
        let steps = (0..60).map(|at| {
            let token = tokens.clone().slice_dim(1, at..at + 1);
            some.decode(token, &mut cache, &method).unwrap()
        });
        let steps = values(Tensor::cat(steps.collect(), 1));
        assert!(difference(&steps, &found) < 1e-5, "{}", method.name());
    }
}

#[test]
fn sparq_skips_positions_in_every_family() {
    for name in FAMILIES {
        let (checkpoint, config) = config(name);
        let device = Device::default();
        let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
        let method = Method::from(SparqConfig::new(config.head_dim / 2, 8));
        let dense = prefill(&model, 40);
        let mut cache = new_cache(&model, 40, &method);
        let tokens = tokens(40, &device);
        let part = |from, to| tokens.clone().slice_dim(1, from..to);
        model.prefill(part(0, 39), &mut cache, 1).unwrap();
        let sparse = values(model.decode(part(39, 40), &mut cache, &method).unwrap());
        let dense = &dense[39 * config.vocab_size..];
        let found = difference(&sparse, dense);
        assert!(found > 1e-5 && found.is_finite(), "{name}: {found}");
        assert_eq!(cache.layers.iter().map(KvCache::len).max(), Some(40));
    }
}

#[test]
fn half_precision_differs_by_rounding() {
    let device = Device::default();
    for name in FAMILIES {
        let (checkpoint, config) = config(name);
        for (dtype, tolerance) in [(FloatDType::F16, 0.01), (FloatDType::BF16, 0.1)] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            let load = |dtype| Decoder::load(&checkpoint, &config, dtype, &device).unwrap();
            let [exact, found] = [FloatDType::F32, dtype].map(|dtype| {
                let (model, method) = (load(dtype), SparqConfig::new(config.head_dim, 8).into());
                let mut cache = model.new_cache(1, 40, dtype, &method).unwrap();
                let part = |from, to| tokens(40, &device).slice_dim(1, from..to);
                let read = model.prefill(part(0, 39), &mut cache, 39).unwrap();
                // The step may select other positions, but it has to run in this type.
                let step = model.decode(part(39, 40), &mut cache, &method).unwrap();
                assert!(values(step).iter().all(|logit| logit.is_finite()));
                values(read)
            });
            let largest = exact.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let worst = difference(&exact, &found) / largest;
            assert!(worst < tolerance, "{name} in {dtype:?}: {worst}");
        }
    }
}

#[cfg(feature = "autodiff")]
#[test]
fn split_projections_and_norms_are_trainable() {
    use burn::module::{Module, ModuleVisitor, Param};
    use burn::tensor::Gradients;

    struct Reached<'a>(&'a Gradients, usize);
    impl ModuleVisitor for Reached<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(self.0);
            self.1 += usize::from(gradient.is_some());
        }
    }
    let device = Device::default().autodiff();
    // Gradients do not reach the key and value projections, because the cache stores detached
    // tensors. The others are 12 tensors per layer and 4 more in GPT-NeoX, 7 and 2 in Gemma.
    for (name, expected) in [("gpt_neox", 3 * 12 + 4), ("gemma_mqa", 3 * 7 + 2)] {
        let (checkpoint, config) = config(name);
        let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
        let mut cache = new_cache(&model, 8, &Method::DENSE);
        let logits = model.prefill(tokens(8, &device), &mut cache, 8).unwrap();
        let gradients = logits.powf_scalar(2.0).sum().backward();
        let mut reached = Reached(&gradients, 0);
        model.visit(&mut reached);
        assert_eq!(reached.1, expected, "{name}");
    }
}
