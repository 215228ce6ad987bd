//! Long generation: a method follows the tokens of dense attention, and then goes its own way.

use std::time::Instant;

use burn::tensor::{FloatDType, Tensor};
use serde_json::Value;
use sparq::Method;
use sparq::ops::SketchTensors;
use sparq_models::ModelCache;
use sparq_models::text::{Sampler, SamplingConfig};

use crate::run::{Answer, Evaluation};
use crate::steps::step;
use crate::{Estimate, EvalError};

/// The number of equal parts of a text, for details by position.
const PARTS: usize = 10;

/// The place in the text where a method first chooses another token, to continue from.
struct Branch {
    cache: ModelCache,
    token: u32,
    /// The tokens before.
    len: usize,
}

impl Evaluation<'_> {
    /// Generates the most probable tokens after `first`, up to `count` or the end of the text,
    /// which is the last token then. Returns `None` if stopped.
    pub(crate) fn generated(
        &self,
        first: u32,
        cache: &mut ModelCache,
        method: &Method,
        count: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<u32>>, EvalError> {
        let (mut tokens, mut token) = (Vec::new(), first);
        while tokens.len() < count {
            if stop() {
                return Ok(None);
            }
            token = self.likeliest(cache, token, method, tokens.is_empty())?;
            tokens.push(token);
            if self.tokenizer.eos_ids().contains(&token) {
                break;
            }
        }
        Ok(Some(tokens))
    }

    /// Compares the tokens of a method with those of dense attention, each after dense attention's
    /// tokens before it. Then generates freely from the first difference, up to `count` tokens.
    /// Returns `None` if stopped.
    pub(crate) fn follow(
        &self,
        dense: &[u32],
        first: u32,
        cache: &mut ModelCache,
        method: &Method,
        count: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Answer>, EvalError> {
        let begin = Instant::now();
        let start = cache.len();
        let (mut agrees, mut token) = (Vec::new(), first);
        let mut branch: Option<Branch> = None;
        for (index, &expected) in dense.iter().enumerate() {
            if stop() {
                return Ok(None);
            }
            let own = self.likeliest(cache, token, method, index == 0)?;
            agrees.push(f64::from(u8::from(own == expected)));
            if own != expected && branch.is_none() {
                branch = Some(Branch {
                    cache: cache.clone(),
                    token: own,
                    len: index + 1,
                });
            }
            token = expected;
        }
        let mut answer = Answer {
            steps: dense.len(),
            seconds: begin.elapsed().as_secs_f64(),
            score: Estimate::of(agrees.iter().copied()).map_or(1.0, |mean| mean.mean),
            ..Answer::default()
        };
        let end = |tokens: &[u32]| match tokens.last() {
            Some(last) if self.tokenizer.eos_ids().contains(last) => tokens.len() - 1,
            _ => tokens.len(),
        };
        let difference = branch.as_ref().map(|branch| branch.len - 1);
        let own_tokens = match branch {
            None => end(dense),
            Some(branch) if self.tokenizer.eos_ids().contains(&branch.token) => branch.len - 1,
            Some(mut branch) => {
                let rest = count.saturating_sub(branch.len);
                let (token, cache) = (branch.token, &mut branch.cache);
                let Some(rest) = self.generated(token, cache, method, rest, stop)? else {
                    return Ok(None);
                };
                branch.len + end(&rest)
            }
        };
        let details = [
            ("agreement", Value::from(parts(&agrees))),
            ("first_difference", Value::from(difference)),
            ("dense_tokens", end(dense).into()),
            ("own_tokens", own_tokens.into()),
            ("outside", outside(cache, start).into()),
        ];
        let details = details.map(|(key, value)| (key.to_owned(), value));
        answer.detail.extend(details);
        Ok(Some(answer))
    }

    /// Decodes a token and returns the most probable next one, which is not the end of the text if
    /// `begins`.
    fn likeliest(
        &self,
        cache: &mut ModelCache,
        token: u32,
        method: &Method,
        begins: bool,
    ) -> Result<u32, EvalError> {
        let mut logits = step(self.model, cache, token, method)?;
        if begins {
            self.forbid_end(&mut logits);
        }
        Ok(Sampler::new(SamplingConfig::default())?.sample(&mut logits, &[])?)
    }
}

/// Returns the means of equal parts, at most [`PARTS`].
fn parts(values: &[f64]) -> Vec<f64> {
    let size = values.len().div_ceil(PARTS).max(1);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    values.chunks(size).map(mean).collect()
}

/// Returns the share of key components from position `start` on that lie outside the range of their
/// channel, by more than half a code. `None` without a sketch in codes.
fn outside(cache: &ModelCache, start: usize) -> Option<f64> {
    let shares = cache.layers.iter().filter_map(|layer| {
        let tensors = layer.tensors();
        let SketchTensors::Codes {
            bits,
            zero_point,
            scale,
            ..
        } = &tensors.sketch
        else {
            return None;
        };
        let keys = tensors.k.at(start..layer.len()).cast(FloatDType::F32);
        // In codes, the range is [0, 2^bits - 1]. A channel of one value has a scale of 0.
        let scale: Tensor<4> = scale.clone().unsqueeze_dim(2);
        let zero_point: Tensor<4> = zero_point.clone().unsqueeze_dim(2);
        let codes = (keys - zero_point) / scale.clamp_min(f32::MIN_POSITIVE);
        let last = ((1u32 << bits) - 1) as f32;
        let is_outside = codes.clone().lower_elem(-0.5);
        let is_outside = is_outside.bool_or(codes.greater_elem(last + 0.5));
        let share = is_outside.float().mean().try_into_vec_as::<f32>().ok()?;
        share.first().copied().map(f64::from)
    });
    Estimate::of(shares).map(|mean| mean.mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_whole() {
        let values: Vec<f64> = (0..25).map(f64::from).collect();
        let means = parts(&values);
        assert_eq!(means.len(), 9);
        assert_eq!((means[0], means[8]), (1.0, 24.0));
        assert_eq!(parts(&[0.5]), [0.5]);
        assert!(parts(&[]).is_empty());
    }
}
