//! The sizes of a decode step.

use std::fmt;

/// The sizes of one decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// B: sequences.
    pub batch: usize,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: KV heads, a divisor of H.
    pub n_kv_heads: usize,
    /// d: the head dimension.
    pub head_dim: usize,
    /// S: positions of the cache, including left padding and the current token.
    pub seq: usize,
}

impl Problem {
    /// Returns g, the number of query heads that share a KV head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Returns the shape of the query and of the output, [B, H, 1, d].
    pub(crate) fn query(&self) -> [usize; 4] {
        [self.batch, self.n_heads, 1, self.head_dim]
    }

    /// Returns the shape of the keys and of the values, [B, H_kv, S, d].
    pub(crate) fn cache(&self) -> [usize; 4] {
        [self.batch, self.n_kv_heads, self.seq, self.head_dim]
    }

    /// Returns the shape of the approximate logits, [B, H_kv, g, S].
    pub(crate) fn logits(&self) -> [usize; 4] {
        [self.batch, self.n_kv_heads, self.group_size(), self.seq]
    }

    /// Returns the shape of `n` elements per batch head, [B, H_kv, n].
    pub(crate) fn per_kv_head(&self, n: usize) -> [usize; 3] {
        [self.batch, self.n_kv_heads, n]
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            batch,
            n_heads,
            n_kv_heads,
            head_dim,
            seq,
        } = self;
        write!(f, "B{batch} H{n_heads}/{n_kv_heads} d{head_dim} S{seq}")
    }
}
