//! Keys and values kept for later prompts: [`Kept`].

use burn::tensor::FloatDType;
use sparq::methods::Dense;
use sparq::{RowFormat, SparqError};
use sparq_models::{CausalLm, ModelCache};

/// The fewest positions worth keeping or copying.
const FEWEST: usize = 16;

/// The most entries. A prompt is compared with all of them.
const MOST: usize = 256;

/// The caches of ended sequences, least recently used first.
///
/// They hold keys and values without a sketch, which every method with the same format of rows can
/// begin with.
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

    /// Returns whether a sequence that begins with these tokens is worth keeping.
    pub(super) fn wants(&self, tokens: &[u32], cache: &ModelCache) -> bool {
        tokens.len() >= FEWEST && !self.covers(tokens, rows(cache))
    }

    /// Keeps the first positions of a sequence, those of `tokens`.
    pub(super) fn keep(&mut self, tokens: Vec<u32>, cache: &ModelCache) -> Result<(), SparqError> {
        if cache.len() < tokens.len() {
            return Ok(());
        }
        let format = rows(cache);
        let mut cache = cache.for_method(&Dense { rows: format }.into())?;
        cache.truncate(tokens.len());
        self.entries
            .retain(|entry| rows(&entry.cache) != format || !tokens.starts_with(&entry.tokens));
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

    fn covers(&self, tokens: &[u32], format: RowFormat) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| rows(&entry.cache) == format && entry.tokens.starts_with(tokens))
    }

    /// Makes a cache for `positions` positions that begins with as many tokens of `prompt` as an
    /// entry has, but not with its last, whose logits begin the answer. Returns their number too.
    pub(super) fn begin(
        &mut self,
        model: &dyn CausalLm,
        dtype: FloatDType,
        format: RowFormat,
        prompt: &[u32],
        positions: usize,
    ) -> Result<(ModelCache, usize), SparqError> {
        let mut cache = model.new_cache(1, positions, dtype, &Dense { rows: format }.into())?;
        let common = |entry: &Entry| match rows(&entry.cache) == format {
            true => common_prefix(&entry.tokens, &prompt[..prompt.len() - 1]),
            false => 0,
        };
        let lengths = self.entries.iter().map(common).enumerate();
        let Some((index, length)) = lengths.max_by_key(|&(_, length)| length) else {
            return Ok((cache, 0));
        };
        if length < FEWEST {
            return Ok((cache, 0));
        }
        let entry = self.entries.remove(index);
        for (to, from) in cache.layers.iter_mut().zip(&entry.cache.layers) {
            let mut common = from.clone();
            common.truncate(length);
            to.write_sequence(0, &common)?;
        }
        self.entries.push(entry);
        Ok((cache, length))
    }
}

/// How a cache stores keys and values, in all layers.
fn rows(cache: &ModelCache) -> RowFormat {
    let first = cache.layers.first();
    first.map_or_else(RowFormat::default, |layer| layer.config().rows)
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
