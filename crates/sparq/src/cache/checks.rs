//! Checks of what is given to a cache, and of what a method needs from it.

use burn::tensor::Tensor;

use super::KvCache;
use crate::{Sketch, SparqError};

impl KvCache {
    /// Checks a query, [B, H, 1, d] with H a multiple of H_kv.
    pub(crate) fn check_query(&self, q: &Tensor<4>, len: usize) -> Result<(), SparqError> {
        let [batch, heads, found, d] = q.dims();
        let expected = self.shape(len);
        let grouped = heads > 0 && heads.is_multiple_of(expected[1]);
        if [batch, expected[1], found, d] == expected && grouped {
            return Ok(());
        }
        let what = "queries [batch, heads (a multiple of kv_heads), tokens, head_dim]";
        Err(SparqError::shape(what, expected, q.dims()))
    }

    /// The shape of keys or values of `len` positions, [B, H_kv, `len`, d].
    fn shape(&self, len: usize) -> [usize; 4] {
        let config = &self.config;
        [config.batch, config.kv_heads, len, config.head_dim]
    }

    /// Checks new keys and values, [B, H_kv, `len`, d] each.
    pub(super) fn check_new(
        &self,
        k: &Tensor<4>,
        v: &Tensor<4>,
        len: usize,
    ) -> Result<(), SparqError> {
        let expected = self.shape(len);
        let found = [("keys", k.dims()), ("values", v.dims())];
        match found.into_iter().find(|(_, found)| *found != expected) {
            Some((what, found)) => Err(SparqError::shape(what, expected, found)),
            None => Ok(()),
        }
    }

    /// Checks that there is one value per sequence.
    pub(super) fn check_batch(
        &self,
        what: &'static str,
        values: &[usize],
    ) -> Result<(), SparqError> {
        if values.len() == self.batch() {
            return Ok(());
        }
        let expected = format!("{} entries (the batch)", self.batch());
        Err(SparqError::value(what, expected, values.len()))
    }

    /// Checks that no sequence is idle.
    pub(crate) fn check_no_idle(&self, operation: &str) -> Result<(), SparqError> {
        let idle = (0..self.batch()).find(|&sequence| self.spans().is_idle(sequence));
        match idle {
            None => Ok(()),
            Some(sequence) => {
                let expected = format!("no idle sequence, for {operation}");
                Err(SparqError::value(
                    "cache",
                    expected,
                    format!("sequence {sequence} idle"),
                ))
            }
        }
    }

    /// Checks that the current token has been appended.
    pub(crate) fn check_not_empty(&self) -> Result<(), SparqError> {
        let expected = "at least the current token's position";
        match self.is_empty() {
            false => Ok(()),
            true => Err(SparqError::value("cache", expected, "none")),
        }
    }

    /// Checks that the cache holds the sketch that a method reads.
    pub(crate) fn check_sketch(
        &self,
        method: &'static str,
        sketch: Sketch,
    ) -> Result<(), SparqError> {
        let describe = |sketch: Option<Sketch>| match sketch {
            None => "nothing".to_owned(),
            Some(Sketch::Full) => "a full copy of K".to_owned(),
            Some(coded) => format!("codes of {} bits", coded.bits().unwrap_or_default()),
        };
        if self.config.sketch == Some(sketch) {
            return Ok(());
        }
        Err(SparqError::MissingSketch {
            method,
            expected: describe(Some(sketch)),
            found: describe(self.config.sketch),
        })
    }

    /// Checks that the cache records the attention that positions receive.
    pub(crate) fn check_records_attention(&self, method: &'static str) -> Result<(), SparqError> {
        match self.states.observes_attention() {
            true => Ok(()),
            false => Err(SparqError::MissingAttention { method }),
        }
    }

    /// Checks that no method has evicted positions, which `reader` would read.
    pub(crate) fn check_whole(&self, reader: &'static str) -> Result<(), SparqError> {
        if self.states.is_whole() {
            return Ok(());
        }
        let expected = format!("every position still present, for {reader}");
        let found = "some evicted by an earlier step";
        Err(SparqError::value("cache", expected, found))
    }
}
