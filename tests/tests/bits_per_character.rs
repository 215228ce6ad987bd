//! Every method on a real model: bits per character (BPC) of ten texts, compared with the code of
//! the paper's authors.
//!
//! `smollm2/bpc_1k.json` has the results of the authors' code for SmolLM2-135M-Instruct, with
//! weights rounded to fp16 and fp32 arithmetic. A dense prefill reads 895 tokens, decode steps read
//! the rest, and the last 128 tokens count. SPARQ_REAL_MODEL=1 runs two of the texts,
//! SPARQ_REAL_MODEL=all ten.

use std::sync::Arc;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, FloatDType, Int, Tensor};
use serde_json::Value;
use sparq::methods::baselines::{FlexGen, H2o, LmInfinite};
use sparq::methods::{GroupScore, MeanValue};
use sparq::{Method, SparqConfig};
use sparq_models::checkpoint::{Checkpoint, Conversion, StoredType};
use sparq_models::{CausalLm, Decoder, ModelCache};
use sparq_tests::*;

/// The tokens of the dense prefill.
const PREFILL: usize = 895;
/// The tokens of a text.
const LENGTH: usize = 1024;
/// The largest accepted difference of a text's BPC from the authors'.
const TOLERANCE: f64 = 0.002;

/// Pairs of methods of which the first has the lower BPC at the same number of bytes.
const ORDER: &[(&str, &str)] = &[
    ("oracle", "sparq-4bit"),
    ("sparq-4bit", "sparq-8bit"),
    ("sparq-8bit", "sparq"),
    ("hybrid", "quest"),
    ("sparq", "h2o"),
    ("sparq", "quest"),
    ("sparq", "random-projection"),
];

/// The tokens [B, 1024] of the texts, and the number of characters in the last 128 tokens of each.
struct Texts {
    tokens: Tensor<2, Int>,
    characters: Vec<i64>,
}

impl Texts {
    fn read(count: usize, device: &Device) -> Self {
        let file = Expected::read("smollm2/bpc_1k.safetensors");
        let ids = file.ints("tokens").1;
        Self {
            tokens: tokens(&ids[..count * LENGTH], count, device),
            characters: file.ints("chars").1[..count].to_vec(),
        }
    }

    fn count(&self) -> usize {
        self.characters.len()
    }

    /// Returns the tokens [B, 1] at a position.
    fn at(&self, position: usize) -> Tensor<2, Int> {
        self.tokens.clone().slice_dim(1, position..position + 1)
    }

    /// Returns a cache with the first tokens of the texts, for all of the methods.
    fn prefill(&self, model: &Decoder, methods: &[Method]) -> ModelCache {
        let mut cache = model
            .new_shared_cache(self.count(), LENGTH, FloatDType::F32, methods)
            .unwrap();
        let beginning = self.tokens.clone().slice_dim(1, 0..PREFILL);
        model.prefill(beginning, &mut cache, 1).unwrap();
        cache
    }

    /// Returns the BPC of each text after a prefill.
    fn bits(&self, model: &Decoder, prefilled: &ModelCache, method: &Method) -> Vec<f64> {
        let mut cache = prefilled.for_method(method).unwrap();
        let mut bits = vec![0.0; self.count()];
        for position in PREFILL..LENGTH - 1 {
            let logits = model.decode(self.at(position), &mut cache, method).unwrap();
            let next = self.at(position + 1).unsqueeze_dim::<3>(2);
            let likelihood = values(log_softmax(logits, 2).gather(2, next));
            for (bits, nats) in bits.iter_mut().zip(likelihood) {
                *bits -= f64::from(nats) / std::f64::consts::LN_2;
            }
        }
        let pairs = bits.iter().zip(&self.characters);
        pairs.map(|(bits, &count)| bits / count as f64).collect()
    }
}

fn texts_of(thoroughness: Thoroughness) -> usize {
    match thoroughness {
        Thoroughness::Some => 2,
        Thoroughness::All => 10,
    }
}

/// Loads the model in fp32 with its weights rounded to fp16.
fn rounded(path: &std::path::Path, device: &Device) -> Decoder {
    let folder = tempfile::tempdir().unwrap();
    Conversion::new(Arc::new(Checkpoint::open(path).unwrap()))
        .with_dtype(Some(StoredType::F16))
        .write(folder.path())
        .unwrap();
    load(&Checkpoint::open(folder.path()).unwrap(), device)
}

/// Returns the method of an entry, given in settings of the authors' code.
///
/// Their k and local window exclude the current token, except in methods that mask a softmax.
fn method(name: &str, entry: &Value) -> Method {
    let settings = entry["settings"].as_str().unwrap_or_default();
    let number = |key: &str| -> usize {
        let (_, rest) = settings.split_once(&format!("{key}=")).unwrap();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
        rest[..digits].parse().unwrap()
    };
    match name.split_once(' ').map_or(name, |(name, _)| name) {
        "dense" => Method::DENSE,
        "sparq" | "sparq-norealloc" => SparqConfig::new(number("rank"), number("(k") + 1)
            .with_local_window(number("local_k") + 1)
            .with_group_score(GroupScore::Logits)
            .with_mean_value(match settings.contains("reallocate_to_mean_value=True") {
                true => MeanValue::Always,
                false => MeanValue::Never,
            })
            .into(),
        "h2o" => H2o {
            top_k: number("(k") + 1,
            local_window: number("local_k") + 1,
        }
        .into(),
        "lm-infinite" => LmInfinite {
            top_k: number("(k"),
            first: number("initial_k"),
        }
        .into(),
        "topk-oracle" => FlexGen {
            top_k: number("(k"),
        }
        .into(),
        other => panic!("no method {other}"),
    }
}

#[test]
fn methods_match_the_authors_code() {
    let Some((path, thoroughness)) = real_model(env!("CARGO_TARGET_TMPDIR")) else {
        return;
    };
    let text = std::fs::read_to_string(fixture("smollm2/bpc_1k.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(expected.len(), 16);
    let cases = expected.iter();
    let cases: Vec<_> = cases
        .map(|(name, entry)| (name, entry, method(name, entry)))
        .collect();
    let methods: Vec<_> = cases.iter().map(|(_, _, method)| *method).collect();
    for device in devices() {
        let model = rounded(&path, &device);
        let texts = Texts::read(texts_of(thoroughness), &device);
        let prefilled = texts.prefill(&model, &methods);
        let mut far = Vec::new();
        for (name, entry, method) in &cases {
            let found = texts.bits(&model, &prefilled, method);
            println!("{name} ({method}): {found:.5?}");
            for (index, &found) in found.iter().enumerate() {
                let expected = entry["bpc"][index].as_f64().unwrap();
                if (found - expected).abs() >= TOLERANCE {
                    far.push(format!("{name}, text {index}: {found:.5}, not {expected}"));
                }
            }
        }
        assert!(far.is_empty(), "{device:?}: {far:#?}");
    }
}

#[test]
fn methods_rank_as_expected_at_one_eighth() {
    let Some((path, thoroughness)) = real_model(env!("CARGO_TARGET_TMPDIR")) else {
        return;
    };
    let names = Method::names().into_iter();
    let methods = names.filter_map(|name| {
        let method = Method::for_budget(name, 64, LENGTH - 1, 0.125).ok()?;
        Some((name, method))
    });
    let methods: Vec<_> = methods.collect();
    let all: Vec<_> = methods.iter().map(|(_, method)| *method).collect();
    for device in devices() {
        let model = rounded(&path, &device);
        let texts = Texts::read(texts_of(thoroughness), &device);
        let prefilled = texts.prefill(&model, &all);
        let mean = |method: &Method| {
            let bits = texts.bits(&model, &prefilled, method);
            bits.iter().sum::<f64>() / bits.len() as f64
        };
        let dense = mean(&Method::DENSE);
        let over: std::collections::BTreeMap<&str, f64> = methods
            .iter()
            .map(|(name, method)| {
                let over = mean(method) - dense;
                println!("{name} ({method}): {over:+.4}");
                (*name, over)
            })
            .collect();
        // The margin is larger than the noise.
        for &(better, worse) in ORDER {
            let (a, b) = (over[better], over[worse]);
            assert!(a + 0.004 < b, "{better} {a}, {worse} {b} on {device:?}");
        }
    }
}
