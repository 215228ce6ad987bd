//! The expected content of a cache.

use std::ops::Range;

use sparq::ops::Spans;
use sparq::{Sketch, SparqConfig};

use crate::Problem;
use crate::float64::stages::HeadInput;

/// A copy of a cache in host memory that follows the cache's documented rules.
#[derive(Clone)]
pub(super) struct Mirror {
    kv_heads: usize,
    head_dim: usize,
    /// Positions per batch head.
    capacity: usize,
    /// Keys, rounded to the cache's type, [B, H_kv, capacity, d].
    k: Vec<f32>,
    /// Values, likewise.
    v: Vec<f32>,
    /// The spans of valid positions.
    pub(super) spans: Spans,
    /// The highest code, if the sketch has codes.
    pub(super) levels: Option<f32>,
    /// The number of valid positions of each sequence when its ranges were set, or 0 if they are
    /// due.
    ranged_at: Vec<usize>,
    /// Zero point and scale of each channel, [B, H_kv][d].
    ranges: Vec<Vec<(f32, f32)>>,
}

impl Mirror {
    /// Returns an empty cache.
    pub(super) fn new(problem: &Problem, sketch: Sketch, padding: &[usize]) -> Self {
        let heads = problem.batch * problem.n_kv_heads;
        let size = heads * problem.seq * problem.head_dim;
        let mut spans = Spans::empty(problem.batch);
        spans.start = padding.to_vec();
        Self {
            kv_heads: problem.n_kv_heads,
            head_dim: problem.head_dim,
            capacity: problem.seq,
            k: vec![0.0; size],
            v: vec![0.0; size],
            spans,
            levels: sketch.bits().map(|bits| ((1u32 << bits) - 1) as f32),
            ranged_at: vec![0; problem.batch],
            ranges: vec![vec![(0.0, 0.0); problem.head_dim]; heads],
        }
    }

    /// Returns S, the length of the longest sequence.
    pub(super) fn len(&self) -> usize {
        self.spans.longest()
    }

    /// Returns the number of batch heads.
    pub(super) fn heads(&self) -> usize {
        self.ranges.len()
    }

    /// Returns the range of the elements of batch head `at` up to position S.
    fn elements(&self, at: usize) -> Range<usize> {
        let first = at * self.capacity * self.head_dim;
        first..first + self.len() * self.head_dim
    }

    /// Returns the keys of batch head `at`, [S, d].
    pub(super) fn keys(&self, at: usize) -> &[f32] {
        &self.k[self.elements(at)]
    }

    /// Returns the values of batch head `at`, [S, d].
    pub(super) fn values(&self, at: usize) -> &[f32] {
        &self.v[self.elements(at)]
    }

    /// Returns the valid positions of batch head `at`.
    pub(super) fn valid(&self, at: usize) -> Range<usize> {
        let b = at / self.kv_heads;
        self.spans.start[b].min(self.spans.end[b])..self.spans.end[b]
    }

    /// Returns zero point and scale of each channel of batch head `at`.
    pub(super) fn ranges(&self, at: usize) -> &[(f32, f32)] {
        &self.ranges[at]
    }

    /// Returns the inputs of a step for batch head `at`, with the queries `q` of its group.
    pub(super) fn input<'a>(
        &'a self,
        at: usize,
        q: &'a [f32],
        config: &'a SparqConfig,
    ) -> HeadInput<'a> {
        HeadInput {
            config,
            q,
            k: self.keys(at),
            v: self.values(at),
            head_dim: self.head_dim,
            valid: self.valid(at),
        }
    }

    /// Appends the first `counts[b]` of `len` keys and values, [B, H_kv, len, d], to sequence b.
    pub(super) fn append(&mut self, k: &[f32], v: &[f32], len: usize, counts: &[usize]) {
        let d = self.head_dim;
        for at in 0..self.heads() {
            let b = at / self.kv_heads;
            let to = (at * self.capacity + self.spans.end[b]) * d;
            let part = at * len * d..(at * len + counts[b]) * d;
            self.k[to..][..counts[b] * d].copy_from_slice(&k[part.clone()]);
            self.v[to..][..counts[b] * d].copy_from_slice(&v[part]);
        }
        self.spans = self.spans.grown(counts);
    }

    /// Truncates every sequence to `len` positions.
    pub(super) fn truncate(&mut self, len: usize) {
        for b in 0..self.spans.batch() {
            self.spans.end[b] = self.spans.end[b].min(len);
            if self.spans.count(b) * 2 < self.ranged_at[b] {
                self.ranged_at[b] = 0;
            }
        }
    }

    /// Sets the ranges of the codes that are due, as the first use of the sketch does.
    pub(super) fn refresh(&mut self, config: &SparqConfig) {
        let Some(levels) = self.levels else { return };
        for b in 0..self.spans.batch() {
            let count = self.spans.count(b);
            let due = self.ranged_at[b] == 0 || count >= 2 * self.ranged_at[b];
            if due && count > 0 {
                for at in b * self.kv_heads..(b + 1) * self.kv_heads {
                    self.ranges[at] = self.input(at, &[], config).ranges(levels);
                }
                self.ranged_at[b] = count;
            }
        }
    }
}
