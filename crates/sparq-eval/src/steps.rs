//! Steps of a model: read a prompt, decode a token, copy logits to the host.

use burn::tensor::{Int, Tensor, TensorData};
use sparq::Method;
use sparq_models::text::{Sampler, SamplingConfig};
use sparq_models::{CausalLm, ModelCache};

use crate::EvalError;

/// The number of tokens per prefill call. Only the logits of one piece are in memory at a time, and
/// progress is reported after each.
pub const PIECE: usize = 512;

/// Makes the input tensor [batch, T] of the tokens of a batch, sequence after sequence.
///
/// # Errors
/// See [`check_tokens`].
pub fn tensor(
    model: &dyn CausalLm,
    tokens: &[u32],
    batch: usize,
) -> Result<Tensor<2, Int>, EvalError> {
    check_tokens(model, tokens)?;
    let tokens: Vec<i64> = tokens.iter().copied().map(i64::from).collect();
    let shape = [batch, tokens.len() / batch.max(1)];
    Ok(Tensor::from_data(
        TensorData::new(tokens, shape),
        &model.device(),
    ))
}

/// Checks that all tokens are in the model's vocabulary. A tokenizer may belong to another model.
///
/// # Errors
/// [`EvalError::Token`] for the first unknown token.
pub fn check_tokens(model: &dyn CausalLm, tokens: &[u32]) -> Result<(), EvalError> {
    let vocab = model.vocab_size();
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&found) => Err(EvalError::Token { vocab, found }),
        None => Ok(()),
    }
}

/// Reads the tokens of one sequence into the cache in pieces. Calls `on_progress` with the number
/// of tokens read after each piece, and stops early if it returns false.
///
/// # Errors
/// If the model refuses the tokens or the device fails.
pub fn read_while(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    on_progress: &dyn Fn(usize) -> bool,
) -> Result<(), EvalError> {
    let mut done = 0;
    for piece in tokens.chunks(PIECE) {
        let logits = model.prefill(tensor(model, piece, 1)?, cache, 1)?;
        // Copying the logits waits for the device, so progress and times are correct.
        host(logits)?;
        done += piece.len();
        if !on_progress(done) {
            break;
        }
    }
    Ok(())
}

/// Reads the tokens of one sequence into the cache in pieces. Calls `on_progress` with the number
/// of tokens read after each piece.
///
/// # Errors
/// If the model refuses the tokens or the device fails.
pub fn read(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    on_progress: &dyn Fn(usize),
) -> Result<(), EvalError> {
    read_while(model, cache, tokens, &|done| {
        on_progress(done);
        true
    })
}

/// Decodes one token with the method and returns the next token's logits, `[vocab]`.
///
/// # Errors
/// If the model refuses the token or the device fails.
pub fn step(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    token: u32,
    method: &Method,
) -> Result<Vec<f32>, EvalError> {
    host(model.decode(tensor(model, &[token], 1)?, cache, method)?)
}

/// Decodes one token with the method and returns the most probable next one.
///
/// # Errors
/// If the model refuses the token, the device fails, or the logits are not finite.
pub fn greedy_step(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    token: u32,
    method: &Method,
) -> Result<u32, EvalError> {
    let mut logits = step(model, cache, token, method)?;
    Ok(Sampler::new(SamplingConfig::default())?.sample(&mut logits, &[])?)
}

/// Copies logits to the host.
///
/// # Errors
/// If the device failed to compute or return them.
pub fn host(logits: Tensor<3>) -> Result<Vec<f32>, EvalError> {
    logits
        .try_into_vec_as::<f32>()
        .map_err(|error| EvalError::Device {
            reason: error.to_string(),
        })
}

/// Returns -ln of the probability that the logits give to a token.
pub fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - largest).exp())
        .sum();
    sum.ln() - f64::from(logits[token as usize] - largest)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, FloatDType};
    use sparq_models::{Decoder, DecoderConfig, embedded};

    use super::*;

    #[test]
    fn tokens_beyond_the_vocabulary_are_refused() {
        let checkpoint = embedded::checkpoint().unwrap();
        let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
        let device = Device::default();
        let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
        let beyond = model.vocab_size() as u32;
        assert_eq!(tensor(&model, &[0, beyond - 1], 1).unwrap().dims(), [1, 2]);
        let error = tensor(&model, &[0, beyond], 1).unwrap_err().to_string();
        let expected = format!("ids below {beyond} (the model's vocabulary), found {beyond}");
        assert!(error.contains(&expected), "{error}");
    }

    #[test]
    fn likelihood_of_equal_logits_is_uniform() {
        let nll = negative_log_likelihood(&[7.0; 6], 2);
        assert!((nll - 6f64.ln()).abs() < 1e-12, "{nll}");
    }

    #[test]
    fn likelihood_of_large_logits_does_not_overflow() {
        // -ln(1 / (1 + e^-1)) is the softplus of -1.
        let nll = negative_log_likelihood(&[1001.0, 1000.0, -3e38], 0);
        assert!((nll - (-1f64).exp().ln_1p()).abs() < 1e-12, "{nll}");
    }
}
