//! What a cache ought to hold.

use std::ops::Range;

use sparq::ops::Spans;
use sparq::{Sketch, SparqConfig};

use crate::Problem;
use crate::host::row::Row;

/// A copy of a cache in the host's memory, kept by the rules that the cache documents.
#[derive(Clone)]
pub(super) struct Mirror {
    kv_heads: usize,
    head_dim: usize,
    /// Positions that each row has room for.
    room: usize,
    /// Keys as the cache's type has them, [B, H_kv, room, d].
    k: Vec<f32>,
    /// Values likewise.
    v: Vec<f32>,
    /// The spans of valid positions.
    pub(super) rows: Spans,
    /// The number of the highest code, if the sketch has codes.
    pub(super) levels: Option<f32>,
    /// Valid positions of each sequence when its ranges were set; 0 where they are due.
    ranged_at: Vec<usize>,
    /// The ranges of each channel, d of them for each of [B, H_kv].
    ranges: Vec<Vec<(f32, f32)>>,
}

impl Mirror {
    /// An empty cache.
    pub(super) fn new(problem: &Problem, sketch: Sketch, padding: &[usize]) -> Self {
        let heads = problem.batch * problem.n_kv_heads;
        let size = heads * problem.seq * problem.head_dim;
        let mut rows = Spans::empty(problem.batch);
        rows.start = padding.to_vec();
        Self {
            kv_heads: problem.n_kv_heads,
            head_dim: problem.head_dim,
            room: problem.seq,
            k: vec![0.0; size],
            v: vec![0.0; size],
            rows,
            levels: sketch.bits().map(|bits| ((1u32 << bits) - 1) as f32),
            ranged_at: vec![0; problem.batch],
            ranges: vec![vec![(0.0, 0.0); problem.head_dim]; heads],
        }
    }

    /// S: the length of the longest sequence.
    pub(super) fn len(&self) -> usize {
        self.rows.longest()
    }

    /// The rows: [B, H_kv] of them.
    pub(super) fn heads(&self) -> usize {
        self.ranges.len()
    }

    /// The elements of row `at` from position 0 to S.
    fn span(&self, at: usize) -> Range<usize> {
        let first = at * self.room * self.head_dim;
        first..first + self.len() * self.head_dim
    }

    /// The keys of row `at`, S of d.
    pub(super) fn keys(&self, at: usize) -> &[f32] {
        &self.k[self.span(at)]
    }

    /// The values of row `at`, S of d.
    pub(super) fn values(&self, at: usize) -> &[f32] {
        &self.v[self.span(at)]
    }

    /// The valid positions of row `at`.
    pub(super) fn valid(&self, at: usize) -> Range<usize> {
        let b = at / self.kv_heads;
        self.rows.start[b].min(self.rows.end[b])..self.rows.end[b]
    }

    /// The ranges of the codes of row `at`, one for each channel.
    pub(super) fn ranges(&self, at: usize) -> &[(f32, f32)] {
        &self.ranges[at]
    }

    /// Row `at` as the input of a step, with the queries `q` of its group.
    pub(super) fn row<'a>(&'a self, at: usize, q: &'a [f32], config: &'a SparqConfig) -> Row<'a> {
        Row {
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
            let to = (at * self.room + self.rows.end[b]) * d;
            let part = at * len * d..(at * len + counts[b]) * d;
            self.k[to..][..counts[b] * d].copy_from_slice(&k[part.clone()]);
            self.v[to..][..counts[b] * d].copy_from_slice(&v[part]);
        }
        self.rows = self.rows.grown(counts);
    }

    /// Rolls every sequence back to its first `len` positions.
    pub(super) fn truncate(&mut self, len: usize) {
        for b in 0..self.rows.batch() {
            self.rows.end[b] = self.rows.end[b].min(len);
            if self.rows.count(b) * 2 < self.ranged_at[b] {
                self.ranged_at[b] = 0;
            }
        }
    }

    /// Sets the ranges of the codes where they are due, as the first use of the sketch does.
    pub(super) fn refresh(&mut self, config: &SparqConfig) {
        let Some(levels) = self.levels else { return };
        for b in 0..self.rows.batch() {
            let count = self.rows.count(b);
            let due = self.ranged_at[b] == 0 || count >= 2 * self.ranged_at[b];
            if due && count > 0 {
                for at in b * self.kv_heads..(b + 1) * self.kv_heads {
                    self.ranges[at] = self.row(at, &[], config).ranges(levels);
                }
                self.ranged_at[b] = count;
            }
        }
    }
}
