//! Converts a burn record of an attention with separate linear layers, here burn's
//! [`MultiHeadAttention`], to one of [`SparqAttention`].
//!
//! A record names its tensors by the fields of the module. So the record is loaded into the module
//! that wrote it, and that module's layers become those of the new one.
//!
//! `cargo run --release -p sparq --example convert_record`

use std::error::Error;
use std::path::Path;

use burn::module::Module;
use burn::nn::attention::{
    MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask,
};
use burn::tensor::{Device, Distribution, Tensor};
use sparq::{SparqAttention, SparqAttentionConfig};

const D_MODEL: usize = 64;
const HEADS: usize = 4;

fn before() -> MultiHeadAttentionConfig {
    MultiHeadAttentionConfig::new(D_MODEL, HEADS).with_dropout(0.0)
}

fn after() -> SparqAttentionConfig {
    SparqAttentionConfig::new(D_MODEL, HEADS, HEADS, D_MODEL / HEADS)
        .with_qkv_bias(true)
        .with_o_bias(true)
}

/// Reads the record `from` and writes the record `to`.
fn convert(from: &Path, to: &Path, device: &Device) -> Result<(), Box<dyn Error>> {
    let old = before().init(device).try_load_file(from)?;
    let new = after().init_with([old.query, old.key, old.value, old.output])?;
    new.save_file(to)?;
    Ok(())
}

/// Saves a module with random weights, converts its record, and returns the largest difference
/// between the outputs of both modules.
fn difference(folder: &Path, device: &Device) -> Result<f32, Box<dyn Error>> {
    device.seed(7);
    let (from, to) = (folder.join("mha.bpk"), folder.join("sparq.bpk"));
    let old: MultiHeadAttention = before().init(device);
    old.clone().save_file(&from)?;
    convert(&from, &to, device)?;
    let new: SparqAttention = after().init(device)?.try_load_file(&to)?;

    let (batch, len) = (2, 20);
    let x = Tensor::<3>::random(
        [batch, len, D_MODEL],
        Distribution::Normal(0.0, 1.0),
        device,
    );
    let mask = generate_autoregressive_mask(batch, len, device);
    let expected = old
        .forward(MhaInput::self_attn(x.clone()).mask_attn(mask))
        .context;
    let found = new.forward(x, None)?;
    Ok((found - expected).abs().max().into_scalar::<f32>())
}

fn run() -> Result<f32, Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("sparq-convert-record-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let difference = difference(&folder, &Device::default());
    std::fs::remove_dir_all(&folder)?;
    difference
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("largest difference after conversion: {:.1e}", run()?);
    Ok(())
}

#[test]
fn converted_records_give_equal_outputs() {
    let difference = run().unwrap();
    assert!(difference < 1e-5, "{difference}");
}
