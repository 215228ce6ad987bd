//! [`Report`]: the text, time and traffic of a generation.

use std::time::Duration;

use burn::tensor::FloatDType;
use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::{KvCacheConfig, Method, Transfers};
use sparq_device::DeviceChoice;
use sparq_models::text::{
    FinishReason, GenerateOptions, Generated, SamplingConfig, SpeculativeConfig, SpeculativeStats,
};
use sparq_output::numbers;

use crate::args::dtype_name;
use crate::clock;
use crate::model::{Description, ModelSource, element_bytes};

/// The JSON document of `generate`.
#[derive(Debug, Serialize)]
pub struct Report {
    model: ModelSource,
    device: String,
    dtype: &'static str,
    attention: Method,
    /// `null` but with `--method lossless`.
    lossless: Option<Lossless>,
    sampling: SamplingConfig,
    text: String,
    tokens: Vec<u32>,
    finish: FinishReason,
    start: Start,
    stats: Stats,
}

/// The time from the beginning of the program to the first token.
#[derive(Debug, Serialize)]
pub struct Start {
    began_unix_seconds: f64,
    load_seconds: f64,
    /// Until the logits that determine the first token, since the beginning.
    first_token_seconds: f64,
}

impl Start {
    /// Makes the times of a program that loaded its model in `load_time` and had the logits of the
    /// prompt `first_token_time` after it began.
    pub fn new(load_time: Duration, first_token_time: Duration) -> Self {
        Self {
            began_unix_seconds: clock::began_unix_seconds(),
            load_seconds: load_time.as_secs_f64(),
            first_token_seconds: first_token_time.as_secs_f64(),
        }
    }
}

/// Drafts and their verification.
#[derive(Debug, Serialize)]
struct Lossless {
    config: SpeculativeConfig,
    #[serde(flatten)]
    stats: SpeculativeStats,
    /// `null` without drafts.
    acceptance: Option<f64>,
    /// `null` without drafts.
    tokens_per_verification: Option<f64>,
    /// An estimate; `null` without drafts.
    seconds_saved: Option<f64>,
}

impl Lossless {
    fn new(config: SpeculativeConfig, stats: SpeculativeStats) -> Self {
        Self {
            config,
            acceptance: stats.acceptance(),
            tokens_per_verification: stats.tokens_per_verification(),
            seconds_saved: stats.seconds_saved(),
            stats,
        }
    }

    /// Returns the statistics as a line of text.
    fn line(&self) -> String {
        let (Some(acceptance), Some(tokens), Some(saved)) = (
            self.acceptance,
            self.tokens_per_verification,
            self.seconds_saved,
        ) else {
            return "drafts  none: dense steps are faster at this length\n".to_owned();
        };
        format!(
            "drafts  {:.1}% of {} tokens accepted, {tokens:.2} tokens per verification, about \
             {saved:.2} s saved\n",
            100.0 * acceptance,
            self.stats.judged,
        )
    }

    /// Returns the bytes of cache that draft steps, verifications and dense steps moved at the mean
    /// length of the text.
    fn bytes(&self, model: &Description, dtype: FloatDType, len: usize) -> f64 {
        let of = |transfers: &dyn Fn(&CacheShape, usize) -> Transfers| {
            model.step_bytes(element_bytes(dtype), len, transfers)
        };
        let sparq = self.config.cache_method();
        let dense = self.stats.verifications + self.stats.dense_steps;
        self.stats.drafted as f64 * of(&|shape, len| sparq.transfers(shape, len))
            + dense as f64 * of(&Transfers::dense)
    }
}

#[derive(Debug, Serialize)]
struct Stats {
    prompt_tokens: usize,
    cached_tokens: usize,
    new_tokens: usize,
    prefill_seconds: f64,
    prefill_tokens_per_second: f64,
    decode_seconds: f64,
    decode_tokens_per_second: f64,
    /// The mean over the decode steps, 0 without any.
    cache_bytes_per_token: f64,
    /// `null` without decode steps.
    share_of_dense: Option<f64>,
}

impl Report {
    /// Makes the report of a generation.
    pub fn new(
        start: Start,
        generated: &Generated,
        model: &Description,
        options: &GenerateOptions,
        device: &DeviceChoice,
        dtype: FloatDType,
    ) -> Self {
        let lossless = options.speculative.zip(generated.speculative);
        let lossless = lossless.map(|(config, stats)| Lossless::new(config, stats));
        let stats = Stats::new(generated, model, dtype, &options.method, lossless.as_ref());
        Self {
            model: model.name.clone(),
            device: device.to_string(),
            dtype: dtype_name(dtype),
            attention: options.method,
            lossless,
            sampling: options.sampling,
            text: generated.text.clone(),
            tokens: generated.tokens.clone(),
            finish: generated.finish.clone(),
            start,
            stats,
        }
    }

    /// Returns time and traffic as text.
    pub fn stats(&self) -> String {
        let (start, stats) = (&self.start, &self.stats);
        let traffic = match stats.share_of_dense {
            Some(share) => format!(
                "{} moved {} of cache per token, {:.1}% of dense",
                self.lossless
                    .as_ref()
                    .map_or(self.attention.name(), |_| "lossless"),
                numbers::binary_bytes(stats.cache_bytes_per_token),
                100.0 * share,
            ),
            None => "no decode step".to_owned(),
        };
        let drafts = self.lossless.as_ref().map_or(String::new(), Lossless::line);
        format!(
            "start   model loaded in {:.2} s, first token after {:.2} s\n\
             prompt  {} tokens ({} from the cache), {:.1} tokens/s\n\
             text    {} tokens, {:.1} tokens/s\n\
             {drafts}{traffic}\n",
            start.load_seconds,
            start.first_token_seconds,
            stats.prompt_tokens,
            stats.cached_tokens,
            stats.prefill_tokens_per_second,
            stats.new_tokens,
            stats.decode_tokens_per_second,
        )
    }
}

impl Stats {
    fn new(
        generated: &Generated,
        model: &Description,
        dtype: FloatDType,
        method: &Method,
        lossless: Option<&Lossless>,
    ) -> Self {
        let cache = KvCacheConfig::new(1, model.kv_heads, model.head_dim)
            .with_capacity(generated.prompt_tokens)
            .with_dtype(dtype)
            .with_sketch(method.sketch());
        let steps = 1..=generated.decode_steps;
        let lengths = steps.map(|step| generated.prompt_tokens + step);
        let (bytes, dense) = lengths.fold((0.0, 0.0), |(bytes, dense), length| {
            let of = |transfers: &dyn Fn(&CacheShape, usize) -> Transfers| {
                model.step_bytes(element_bytes(dtype), length, transfers)
            };
            (
                bytes + of(&|shape, len| method.at(&cache, len).transfers(shape, len)),
                dense + of(&Transfers::dense),
            )
        });
        let mean = generated.prompt_tokens + generated.decode_steps.div_ceil(2);
        let bytes = lossless.map_or(bytes, |lossless| lossless.bytes(model, dtype, mean));
        Self {
            prompt_tokens: generated.prompt_tokens,
            cached_tokens: generated.cached_tokens,
            new_tokens: generated.tokens.len(),
            prefill_seconds: generated.prefill_time.as_secs_f64(),
            prefill_tokens_per_second: generated.prefill_tokens_per_second(),
            decode_seconds: generated.decode_time.as_secs_f64(),
            decode_tokens_per_second: generated.decode_tokens_per_second(),
            cache_bytes_per_token: bytes / generated.decode_steps.max(1) as f64,
            share_of_dense: (dense > 0.0).then(|| bytes / dense),
        }
    }
}
