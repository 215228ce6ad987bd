//! What every command does with a model: read a prompt, take a step, bring logits to the host.

use burn::tensor::{Int, Tensor, TensorData};
use sparq::Method;
use sparq_models::text::{Sampler, SamplingConfig};
use sparq_models::{CausalLm, ModelCache};

use crate::EvalError;

/// Tokens that a prefill reads at once. Between two pieces a progress bar moves, and the logits of one piece are what has to be in memory.
pub const PIECE: usize = 512;

/// Tokens of a batch, row after row, as the tensor [batch, T] that models read.
///
/// # Errors
/// As [`check_tokens`].
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

/// Checks that the model knows all tokens: a tokenizer may come from elsewhere.
///
/// # Errors
/// [`EvalError::Token`] for the first that it does not know.
pub fn check_tokens(model: &dyn CausalLm, tokens: &[u32]) -> Result<(), EvalError> {
    let vocab = model.vocab_size();
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&found) => Err(EvalError::Token { vocab, found }),
        None => Ok(()),
    }
}

/// Reads the tokens of one sequence into the cache, in pieces; after each, `on_progress` is told how many have been read, and reading ends early where it says
/// false.
///
/// # Errors
/// When the model refuses them or the device fails.
pub fn read_while(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    on_progress: &dyn Fn(usize) -> bool,
) -> Result<(), EvalError> {
    let mut done = 0;
    for piece in tokens.chunks(PIECE) {
        let logits = model.prefill(tensor(model, piece, 1)?, cache, 1)?;
        // Reading the logits waits for the device, so that progress and time are true.
        host(logits)?;
        done += piece.len();
        if !on_progress(done) {
            break;
        }
    }
    Ok(())
}

/// Reads the tokens of one sequence into the cache, in pieces; after each, `on_progress` is told how many have been read.
///
/// # Errors
/// When the model refuses them or the device fails.
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

/// Reads one token with the method and returns the logits behind it, one for each token of the vocabulary.
///
/// # Errors
/// When the model refuses it or the device fails.
pub fn step(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    token: u32,
    method: &Method,
) -> Result<Vec<f32>, EvalError> {
    host(model.decode(tensor(model, &[token], 1)?, cache, method)?)
}

/// Reads one token with the method and returns the most probable next one.
///
/// # Errors
/// When the model refuses it, the device fails, or the logits are no numbers.
pub fn greedy_step(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    token: u32,
    method: &Method,
) -> Result<u32, EvalError> {
    let mut logits = step(model, cache, token, method)?;
    Ok(Sampler::new(SamplingConfig::default())?.sample(&mut logits, &[])?)
}

/// Logits on the host.
///
/// # Errors
/// When the device could not compute them or hand them over.
pub fn host(logits: Tensor<3>) -> Result<Vec<f32>, EvalError> {
    logits
        .try_into_vec_as::<f32>()
        .map_err(|error| EvalError::Device {
            reason: error.to_string(),
        })
}

/// -ln of the probability that logits give to a token.
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
    fn tokens_that_the_model_does_not_have_are_an_error() {
        let checkpoint = embedded::checkpoint().unwrap();
        let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
        let device = Device::default();
        let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
        let beyond = model.vocab_size() as u32;
        assert_eq!(tensor(&model, &[0, beyond - 1], 1).unwrap().dims(), [1, 2]);
        let error = tensor(&model, &[0, beyond], 1).unwrap_err().to_string();
        let found = format!("expected ids below {beyond} (the model's vocabulary), found {beyond}");
        assert!(error.contains(&found), "{error}");
    }

    #[test]
    fn the_likelihood_of_equal_logits_is_that_of_a_die() {
        let nll = negative_log_likelihood(&[7.0; 6], 2);
        assert!((nll - 6f64.ln()).abs() < 1e-12, "{nll}");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        // 1 / (1 + e^-1): softplus of -1.
        let nll = negative_log_likelihood(&[1001.0, 1000.0, -3e38], 0);
        assert!((nll - (-1f64).exp().ln_1p()).abs() < 1e-12, "{nll}");
    }
}
