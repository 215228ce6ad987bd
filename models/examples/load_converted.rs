//! Loads a converted model and generates text, in ten statements.
//!
//! `cargo run --release -p sparq-models --example load_converted -- FOLDER "In the beginning"`
//!
//! FOLDER is the output of `sparq convert`. Without it, the example converts the embedded model to
//! a temporary folder.

use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, FloatDType};
use sparq::{Method, SparqConfig};
use sparq_models::checkpoint::{Checkpoint, Conversion, StoredType};
use sparq_models::text::{GenerateOptions, Session, TextTokenizer};
use sparq_models::{CausalLm, Decoder, DecoderConfig, embedded};

const PROMPT: &str = "In the beginning";

/// Returns the text that the model in `folder` generates after `prompt`, with its recommended
/// settings of SparQ.
fn complete(folder: &Path, prompt: &str, max_new_tokens: usize) -> Result<String, Box<dyn Error>> {
    let (device, dtype) = (Device::default(), FloatDType::F32);
    let checkpoint = Checkpoint::open(folder)?;
    let config = DecoderConfig::from_checkpoint(&checkpoint)?;
    let model = Decoder::load(&checkpoint, &config, dtype, &device)?;
    let tokenizer = TextTokenizer::from_folder(folder)?;
    let method = checkpoint.attention().map_or(Method::DENSE, Method::from);
    let tokens = tokenizer.encode(prompt, true)?;
    let cache = model.new_cache(1, tokens.len() + max_new_tokens, dtype, &method)?;
    let options = GenerateOptions {
        method,
        max_new_tokens,
        ..Default::default()
    };
    let generated =
        Session::new(cache, tokenizer).generate(&model, &tokens, &options, &mut |_| {
            ControlFlow::Continue(())
        })?;
    Ok(generated.text)
}

/// Converts the embedded model, as `sparq convert` does, to a temporary folder.
fn converted() -> Result<PathBuf, Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("sparq-load-converted-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Conversion::new(Arc::new(embedded::checkpoint()?))
        .with_dtype(Some(StoredType::F32))
        .with_attention(Some(SparqConfig::new(16, 128)))
        .write(&folder)?;
    // A checkpoint in memory has no tokenizer.
    fs::write(folder.join("tokenizer.json"), embedded::TOKENIZER)?;
    Ok(folder)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let given = args.next().map(PathBuf::from);
    let prompt = args.next().unwrap_or_else(|| PROMPT.into());
    let folder = given.clone().map_or_else(converted, Ok)?;
    println!("{prompt}{}", complete(&folder, &prompt, 64)?);
    if given.is_none() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

#[test]
fn converted_model_writes_the_same_text() {
    let folder = converted().unwrap();
    let text = complete(&folder, PROMPT, 32).unwrap();
    fs::remove_dir_all(folder).unwrap();

    let (device, dtype) = (Device::default(), FloatDType::F32);
    let checkpoint = embedded::checkpoint().unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    let model = Decoder::load(&checkpoint, &config, dtype, &device).unwrap();
    let tokenizer = embedded::tokenizer().unwrap();
    let method = Method::from(SparqConfig::new(16, 128));
    let tokens = tokenizer.encode(PROMPT, true).unwrap();
    let cache = model.new_cache(1, 64, dtype, &method).unwrap();
    let options = GenerateOptions {
        method,
        max_new_tokens: 32,
        ..Default::default()
    };
    let mut session = Session::new(cache, tokenizer);
    let expected = session.generate(
        &model,
        &tokens,
        &options,
        &mut |_| ControlFlow::Continue(()),
    );
    assert_eq!(text, expected.unwrap().text);
    assert!(
        text.chars().filter(|char| char.is_alphabetic()).count() > 16,
        "{text:?}"
    );
}
