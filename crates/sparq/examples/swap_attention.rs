//! Replaces a hand-written attention by [`SparqAttention`] with the same weights.
//!
//! If k covers every position of the cache, the outputs stay the same. With a smaller k, a step
//! reads a fraction of the cache.
//!
//! `cargo run --release -p sparq --example swap_attention`

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::{Method, SparqAttention, SparqAttentionConfig, SparqConfig, SparqError};

const D_MODEL: usize = 128;
const HEADS: usize = 4;
const HEAD_DIM: usize = D_MODEL / HEADS;
const LEN: usize = 96;

/// Plain causal attention: no cache, all scores at once.
#[derive(Module, Debug)]
struct OwnAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl OwnAttention {
    fn new(device: &Device) -> Self {
        let linear = || LinearConfig::new(D_MODEL, D_MODEL).init(device);
        Self {
            query: linear(),
            key: linear(),
            value: linear(),
            out: linear(),
        }
    }

    /// Runs x [B, T, D] -> [B, T, D].
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, len, _] = x.dims();
        let heads = |linear: &Linear| {
            let y = linear.forward(x.clone());
            y.reshape([batch, len, HEADS, HEAD_DIM]).swap_dims(1, 2)
        };
        let scores = heads(&self.query).matmul(heads(&self.key).transpose());
        let scores = scores / (HEAD_DIM as f64).sqrt();
        let later = Tensor::<2>::ones([len, len], &x.device()).triu(1).bool();
        let later = later.unsqueeze::<4>().expand([batch, HEADS, len, len]);
        let scores = scores.mask_fill(later, f32::NEG_INFINITY);
        let y = softmax(scores, 3).matmul(heads(&self.value));
        self.out
            .forward(y.swap_dims(1, 2).reshape([batch, len, D_MODEL]))
    }

    /// Moves the weights into the module that decodes with a cache.
    fn into_sparq(self) -> Result<SparqAttention, SparqError> {
        SparqAttentionConfig::new(D_MODEL, HEADS, HEADS, HEAD_DIM)
            .init_with([self.query, self.key, self.value, self.out])
    }
}

/// Prefills all of x except the last vector, then decodes the last one with `method`.
fn last_step(
    attention: &SparqAttention,
    x: &Tensor<3>,
    method: &Method,
) -> Result<Tensor<3>, SparqError> {
    let [batch, len, _] = x.dims();
    let config = attention.cache_config(batch, len, FloatDType::F32, method);
    let mut cache = config.init(&x.device())?;
    attention.forward(x.clone().slice_dim(1, 0..len - 1), Some(&mut cache))?;
    attention.decode(x.clone().slice_dim(1, len - 1..len), &mut cache, method)
}

/// Returns the largest differences between the old and the new outputs: of the whole sequence, of a
/// step with all positions, and of a step with r = 8 and k = 32.
fn differences(device: &Device) -> Result<[f32; 3], SparqError> {
    device.seed(1);
    let own = OwnAttention::new(device);
    let x = Tensor::<3>::random([2, LEN, D_MODEL], Distribution::Normal(0.0, 1.0), device);
    let before = own.forward(x.clone());
    let last = before.clone().slice_dim(1, LEN - 1..LEN);

    let attention = own.into_sparq()?;
    let whole = attention.forward(x.clone(), None)?;
    let everything = last_step(&attention, &x, &Method::from(SparqConfig::new(8, LEN)))?;
    let fraction = last_step(&attention, &x, &Method::from(SparqConfig::new(8, 32)))?;
    let largest = |a: Tensor<3>, b: Tensor<3>| (a - b).abs().max().into_scalar::<f32>();
    Ok([
        largest(whole, before),
        largest(everything, last.clone()),
        largest(fraction, last),
    ])
}

fn main() -> Result<(), SparqError> {
    let [whole, everything, fraction] = differences(&Device::default())?;
    println!("largest difference from the replaced attention:");
    println!("  whole sequence                {whole:.1e}");
    println!("  a step with k = all positions {everything:.1e}");
    println!("  a step with r = 8, k = 32     {fraction:.1e}");
    Ok(())
}

#[test]
fn only_a_small_k_changes_the_output() {
    let [whole, everything, fraction] = differences(&Device::default()).unwrap();
    assert!(whole < 1e-5 && everything < 1e-5, "{whole} {everything}");
    assert!(fraction > 1e-4 && fraction < 0.5, "{fraction}");
}
