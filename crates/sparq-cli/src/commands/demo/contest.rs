//! One prefilled text, one question after the other, each answered by every method from the same cache.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use sparq::cost::CacheShape;
use sparq::{Method, Transfers};
use sparq_eval::haystack::Needle;
use sparq_models::{CausalLm, ModelCache};

use crate::model::{self, read};

/// How a method did over all questions.
#[derive(Clone, Debug)]
pub struct Record {
    /// The method.
    pub method: Method,
    /// What it said to each question.
    pub answers: Vec<String>,
    /// Bytes of cache read and written, over all steps.
    bytes: f64,
    /// What dense attention would have moved in these steps.
    dense_bytes: f64,
    steps: usize,
    time: Duration,
}

impl Record {
    /// The record of a method that has not answered yet.
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

    /// Bytes of cache that a token moved, on average.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes / self.steps.max(1) as f64
    }

    /// The same as a share of dense attention's.
    pub fn share_of_dense(&self) -> f64 {
        if self.dense_bytes > 0.0 {
            self.bytes / self.dense_bytes
        } else {
            1.0
        }
    }

    /// Tokens decoded in a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.steps as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Tokens decoded.
    pub fn steps(&self) -> usize {
        self.steps
    }
}

/// The text in the cache, and what it took to read it.
pub struct Contest<'a> {
    model: &'a dyn CausalLm,
    shape: CacheShape,
    cache: ModelCache,
    text_len: usize,
    /// Time of the text's prefill.
    pub prefill: Duration,
}

impl<'a> Contest<'a> {
    /// Reads the text, in pieces: `on_progress` is told after each how many tokens have been read.
    ///
    /// The cache has room for `capacity` tokens. It holds the sketch of `sketched`, so that it serves every method: one prefill, and rolled back between the answers instead of copied.
    ///
    /// # Errors
    /// When the model can't read the tokens.
    pub fn new(
        model: &'a dyn CausalLm,
        shape: CacheShape,
        text: &[u32],
        capacity: usize,
        dtype: FloatDType,
        sketched: &Method,
        on_progress: &dyn Fn(usize),
    ) -> Result<Self> {
        let mut cache = model.new_cache(1, capacity, dtype, sketched)?;
        let begin = Instant::now();
        read(model, &mut cache, text, on_progress)?;
        // The ranges of a sketch in bits are set once, by the text. They belong to the prefill, not to the first token that is decoded.
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

    /// Bytes that the cache holds for the method: keys and values, and beside them what SparQ needs.
    pub fn memory(&self) -> sparq::cost::CacheMemory {
        self.cache.memory()
    }

    /// Reads a question behind the text, all but its last token, densely. Every [`Contest::answer`] then starts from here.
    ///
    /// # Errors
    /// When the model can't read the tokens.
    pub fn ask(&mut self, question: &[u32]) -> Result<()> {
        let Some((_, before)) = question.split_last() else {
            bail!("question: expected a token at least, found none")
        };
        self.cache.truncate(self.text_len);
        read(self.model, &mut self.cache, before, &|_| ())?;
        Ok(())
    }

    /// Decodes the answer to the question that was asked last, from the question's last token on with the method, and leaves the cache as it was.
    ///
    /// # Errors
    /// When the model can't decode.
    pub fn answer(
        &mut self,
        question: &[u32],
        needle: &Needle,
        record: &mut Record,
        on_text: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let Some(&last) = question.last() else {
            bail!("question: expected a token at least, found none")
        };
        let asked = self.cache.len();
        let (mut token, mut answer) = (last, Vec::new());
        for _ in 0..needle.answer().len() {
            let begin = Instant::now();
            token = model::greedy_step(self.model, &mut self.cache, token, &record.method)?;
            record.time += begin.elapsed();
            record.steps += 1;
            record.bytes += record
                .method
                .transfers(&self.shape, self.cache.len())
                .bytes();
            record.dense_bytes += Transfers::dense(&self.shape, self.cache.len()).bytes();
            // A token of this model is a byte. What is no printable character would disturb the terminal's columns.
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
        record.answers.push(answer.into_iter().collect());
        Ok(())
    }
}
