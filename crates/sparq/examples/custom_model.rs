//! SparQ in a custom model: transformer blocks around [`SparqAttention`] generate tokens with dense
//! attention and with SparQ.
//!
//! The example shows how the parts fit together, and how many bytes of the cache a decode step
//! moves. The weights are random, so the tokens have no meaning. Untrained heads spread their
//! attention widely, which is the hardest case for any sparse method.
//!
//! `cargo run --release -p sparq --example custom_model`

use std::error::Error;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::cost::CacheShape;
use sparq::{
    KvCache, Method, RotaryConfig, Sketch, SparqAttention, SparqAttentionConfig, SparqConfig,
    SparqError,
};

const VOCABULARY: usize = 256;
const D_MODEL: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const LAYERS: usize = 2;
const PROMPT: usize = 1024;
const NEW_TOKENS: usize = 16;

/// A pre-norm transformer block: attention and a gated MLP, each added to its input.
#[derive(Module, Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: SparqAttention,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(device: &Device) -> Result<Self, SparqError> {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(D_MODEL).init(device);
        let attention = SparqAttentionConfig::new(D_MODEL, HEADS, KV_HEADS, HEAD_DIM)
            .with_rotary(Some(RotaryConfig::new(HEAD_DIM)));
        Ok(Self {
            attention_norm: norm(),
            attention: attention.init(device)?,
            mlp_norm: norm(),
            gate: linear(D_MODEL, 4 * D_MODEL),
            up: linear(D_MODEL, 4 * D_MODEL),
            down: linear(4 * D_MODEL, D_MODEL),
        })
    }

    /// Runs x [B, T, D] -> [B, T, D]: a decode step with `method`, or a prefill without.
    fn forward(
        &self,
        x: Tensor<3>,
        cache: &mut KvCache,
        method: Option<&Method>,
    ) -> Result<Tensor<3>, SparqError> {
        let normed = self.attention_norm.forward(x.clone());
        let attended = match method {
            None => self.attention.forward(normed, Some(cache))?,
            Some(method) => self.attention.decode(normed, cache, method)?,
        };
        let x = x + attended;
        let normed = self.mlp_norm.forward(x.clone());
        let hidden = silu(self.gate.forward(normed.clone())) * self.up.forward(normed);
        Ok(x + self.down.forward(hidden))
    }
}

/// A small language model.
#[derive(Module, Debug)]
struct Model {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Model {
    fn new(device: &Device) -> Result<Self, SparqError> {
        Ok(Self {
            embedding: EmbeddingConfig::new(VOCABULARY, D_MODEL).init(device),
            blocks: (0..LAYERS)
                .map(|_| Block::new(device))
                .collect::<Result<_, _>>()?,
            norm: RmsNormConfig::new(D_MODEL).init(device),
            head: LinearConfig::new(D_MODEL, VOCABULARY)
                .with_bias(false)
                .init(device),
        })
    }

    /// Returns the most likely token after `tokens`, which are appended to the caches.
    fn next(
        &self,
        tokens: &[i64],
        caches: &mut [KvCache],
        method: Option<&Method>,
    ) -> Result<i64, SparqError> {
        let device = self.head.weight.device();
        let ids = Tensor::<1, Int>::from_ints(tokens, &device).unsqueeze::<2>();
        let mut x = self.embedding.forward(ids);
        for (block, cache) in self.blocks.iter().zip(caches) {
            x = block.forward(x, cache, method)?;
        }
        let last = x.slice_dim(1, tokens.len() - 1..tokens.len());
        Ok(self
            .head
            .forward(self.norm.forward(last))
            .argmax(2)
            .into_scalar::<i64>())
    }

    /// Prefills the prompt with dense attention, then generates greedily with `method`.
    fn generate(
        &self,
        prompt: &[i64],
        method: &Method,
        device: &Device,
    ) -> Result<Vec<i64>, SparqError> {
        let cache = |block: &Block| {
            block
                .attention
                .cache_config(1, PROMPT + NEW_TOKENS, FloatDType::F32, method)
                .init(device)
        };
        let mut caches: Vec<KvCache> = self.blocks.iter().map(cache).collect::<Result<_, _>>()?;
        let mut tokens = vec![self.next(prompt, &mut caches, None)?];
        while tokens.len() < NEW_TOKENS {
            let last = tokens[tokens.len() - 1];
            tokens.push(self.next(&[last], &mut caches, Some(method))?);
        }
        Ok(tokens)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default();
    device.seed(42);
    let model = Model::new(&device)?;
    let prompt: Vec<i64> = (0..PROMPT as i64).map(|at| at * at % 251).collect();

    // Chooses r and k so that a step moves at most a quarter of the bytes of dense attention. The
    // approximate scores come from a 4-bit sketch of K.
    let sparq = SparqConfig::new(1, 1)
        .with_sketch(Sketch::Bits4)
        .for_compression(HEAD_DIM, PROMPT, 0.25)?;
    println!(
        "SparQ with r = {} of {HEAD_DIM} components and k = {} of {PROMPT} positions",
        sparq.rank, sparq.top_k
    );

    let shape = CacheShape {
        head_dim: HEAD_DIM,
        kv_heads: LAYERS * KV_HEADS,
        layers: 1,
        element_bytes: 4,
    };
    let dense_bytes = Method::DENSE.transfers(&shape, PROMPT).bytes();
    for method in [Method::DENSE, Method::from(sparq)] {
        let tokens = model.generate(&prompt, &method, &device)?;
        let bytes = method.transfers(&shape, PROMPT).bytes();
        println!(
            "{:>6}: {:>7.1} KiB per step, {:>5.1} % of dense; tokens {tokens:?}",
            method.name(),
            bytes / 1024.0,
            100.0 * bytes / dense_bytes
        );
    }
    Ok(())
}

#[test]
fn both_methods_start_with_the_prefills_token() {
    let device = Device::default();
    device.seed(42);
    let model = Model::new(&device).unwrap();
    let prompt: Vec<i64> = (0..PROMPT as i64).map(|at| at * at % 251).collect();
    let generate = |method| model.generate(&prompt, &method, &device).unwrap();
    let dense = generate(Method::DENSE);
    let sparq = generate(Method::from(SparqConfig::new(8, 128)));
    assert_eq!((dense.len(), sparq.len()), (NEW_TOKENS, NEW_TOKENS));
    assert_eq!(dense[0], sparq[0]);
    // With every position and every component, SparQ equals dense attention.
    let all = SparqConfig::new(HEAD_DIM, PROMPT + NEW_TOKENS);
    assert_eq!(generate(Method::from(all)), dense);
}
