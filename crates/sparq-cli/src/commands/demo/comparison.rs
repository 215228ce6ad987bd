//! [`Comparison`]: every method answers every question on one text from the same cache.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use sparq::cost::CacheShape;
use sparq::{Method, Transfers};
use sparq_eval::haystack::Needle;
use sparq_eval::steps;
use sparq_models::{CausalLm, ModelCache};

use crate::output::Output;
use crate::progress;

/// The answers of a method, with the time and bytes they took.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The method.
    pub method: Method,
    /// The answer to each question.
    pub answers: Vec<String>,
    /// The bytes moved in all decode steps.
    bytes: f64,
    /// The bytes that dense attention moves in the same steps.
    dense_bytes: f64,
    /// The number of decode steps.
    pub steps: usize,
    time: Duration,
}

impl Tally {
    /// Creates the tally of a method without answers.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            answers: Vec::new(),
            bytes: 0.0,
            dense_bytes: 0.0,
            steps: 0,
            time: Duration::ZERO,
        }
    }

    /// Returns the mean bytes of cache moved per token.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes / self.steps.max(1) as f64
    }

    /// Returns the bytes moved as a share of dense attention's.
    pub fn share_of_dense(&self) -> f64 {
        if self.dense_bytes > 0.0 {
            self.bytes / self.dense_bytes
        } else {
            1.0
        }
    }

    /// Returns the number of tokens decoded per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.steps as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// A text in the cache of a model.
pub struct Comparison<'a> {
    model: &'a dyn CausalLm,
    shape: CacheShape,
    cache: ModelCache,
    text_len: usize,
    /// The time of the text's prefill.
    pub prefill: Duration,
}

impl<'a> Comparison<'a> {
    /// Reads the text into a cache for `capacity` tokens.
    ///
    /// The cache holds the sketch of `sketched` and serves every method. It is truncated between
    /// answers instead of copied.
    pub fn new(
        model: &'a dyn CausalLm,
        shape: CacheShape,
        text: &[u32],
        capacity: usize,
        dtype: FloatDType,
        sketched: &Method,
        out: Output,
    ) -> Result<Self> {
        let mut cache = model.new_cache(1, capacity, dtype, sketched)?;
        let begin = Instant::now();
        progress::read(model, &mut cache, text, out)?;
        // The ranges of a quantised sketch are determined once, by the text. Their time belongs to
        // the prefill, not to the first decode step.
        for layer in &mut cache.layers {
            layer.refresh_sketch();
        }
        model.device().sync()?;
        let prefill = begin.elapsed();
        Ok(Self {
            model,
            shape,
            cache,
            text_len: text.len(),
            prefill,
        })
    }

    /// Returns the bytes of the cache: keys, values and the key sketch.
    pub fn memory(&self) -> sparq::cost::CacheMemory {
        self.cache.memory()
    }

    /// Reads a question after the text with dense attention, except its last token. Every
    /// [`Comparison::answer`] begins there.
    pub fn ask(&mut self, question: &[u32]) -> Result<()> {
        let Some((_, before)) = question.split_last() else {
            bail!("question: expected at least one token, found none")
        };
        self.cache.truncate(self.text_len);
        steps::read(self.model, &mut self.cache, before, &|_| ())?;
        Ok(())
    }

    /// Decodes the answer to the last question asked, from the question's last token on, with the
    /// method of the tally. Leaves the cache unchanged.
    pub fn answer(
        &mut self,
        question: &[u32],
        needle: &Needle,
        tally: &mut Tally,
        on_text: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let Some(&last) = question.last() else {
            bail!("question: expected at least one token, found none")
        };
        let asked = self.cache.len();
        let (mut token, mut answer) = (last, Vec::new());
        for _ in 0..needle.answer().len() {
            let begin = Instant::now();
            token = steps::greedy_step(self.model, &mut self.cache, token, &tally.method)?;
            tally.time += begin.elapsed();
            tally.steps += 1;
            let len = self.cache.len();
            tally.bytes += tally.method.transfers(&self.shape, len).bytes();
            tally.dense_bytes += Transfers::dense(&self.shape, len).bytes();
            // A token of this model is a byte. Other than printable characters would break the
            // columns.
            let byte = u8::try_from(token).unwrap_or(b'?');
            let shown = if byte.is_ascii_graphic() || byte == b' ' {
                char::from(byte)
            } else {
                '?'
            };
            answer.push(shown);
            on_text(shown.encode_utf8(&mut [0; 4]))?;
            if byte == b'.' {
                break;
            }
        }
        self.cache.truncate(asked);
        tally.answers.push(answer.into_iter().collect());
        Ok(())
    }
}
