//! Keys and values kept for later prompts: [`Kept`].

use burn::tensor::FloatDType;
use sparq::{KvCache, Method, RowFormat, SparqError};
use sparq_models::{CausalLm, ModelCache};

/// The fewest positions worth keeping or copying.
const FEWEST: usize = 16;

/// The most entries. A prompt is compared with all of them.
const MOST: usize = 256;

/// The caches of ended sequences, least recently used first.
///
/// They hold keys and values without a sketch, which every method can begin with.
#[derive(Default)]
pub(super) struct Kept {
    entries: Vec<Entry>,
}

struct Entry {
    tokens: Vec<u32>,
    cache: ModelCache,
    bytes: usize,
}

impl Kept {
    /// Returns the bytes of all entries.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Removes entries, least recently used first, until they take at most `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        while !self.entries.is_empty() && self.bytes() > bytes {
            self.entries.remove(0);
        }
    }

    /// Returns whether a sequence that begins with these tokens is worth keeping. Rows in 8 bits
    /// serve no other method.
    pub(super) fn wants(&self, tokens: &[u32], cache: &ModelCache) -> bool {
        let floats = |layer: &KvCache| layer.config().rows == RowFormat::Float;
        tokens.len() >= FEWEST && cache.layers.iter().all(floats) && !self.covers(tokens)
    }

    /// Keeps the first positions of a sequence, those of `tokens`.
    pub(super) fn keep(&mut self, tokens: Vec<u32>, cache: &ModelCache) -> Result<(), SparqError> {
        if cache.len() < tokens.len() {
            return Ok(());
        }
        let mut cache = cache.for_method(&Method::DENSE)?;
        cache.truncate(tokens.len());
        self.entries
            .retain(|entry| !tokens.starts_with(&entry.tokens));
        if self.entries.len() == MOST {
            self.entries.remove(0);
        }
        let bytes = cache.memory().total();
        self.entries.push(Entry {
            tokens,
            cache,
            bytes,
        });
        Ok(())
    }

    fn covers(&self, tokens: &[u32]) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.tokens.starts_with(tokens))
    }

    /// Makes a cache for `positions` positions that begins with as many tokens of `prompt` as an
    /// entry has, but not with its last, whose logits begin the answer. Returns their number too.
    pub(super) fn begin(
        &mut self,
        model: &dyn CausalLm,
        dtype: FloatDType,
        prompt: &[u32],
        positions: usize,
    ) -> Result<(ModelCache, usize), SparqError> {
        let mut cache = model.new_cache(1, positions, dtype, &Method::DENSE)?;
        let common = |entry: &Entry| common_prefix(&entry.tokens, &prompt[..prompt.len() - 1]);
        let lengths = self.entries.iter().map(common).enumerate();
        let Some((index, length)) = lengths.max_by_key(|&(_, length)| length) else {
            return Ok((cache, 0));
        };
        if length < FEWEST {
            return Ok((cache, 0));
        }
        let entry = self.entries.remove(index);
        for (to, from) in cache.layers.iter_mut().zip(&entry.cache.layers) {
            let tensors = from.tensors();
            to.append(tensors.k.at(0..length), tensors.v.at(0..length))?;
        }
        self.entries.push(entry);
        Ok((cache, length))
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
