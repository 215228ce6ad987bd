//! Decode steps over a whole batch: the order of the stages, and their division among threads.

use std::ops::Range;

use rayon::prelude::*;

use super::attend::{Attend, Positions, Span};
use super::element::Element;
use super::online_softmax::OnlineSoftmax;
use super::query::{Columns, Query};
use super::score::{GroupKeys, ScoreBlock, Scores};
use super::scratch::{Buffers, Scratch};
use super::simd::{Level, MAX_LANES};
use super::sketch::{BLOCK, KeySketch, Slots, Storage};
use super::threads::Threads;
use crate::SparqConfig;
use crate::ops::Spans;

/// Exact attention of one head is not divided among threads below this number of positions.
const MIN_POSITIONS: usize = 256;

/// The queries, keys and values of a decode step.
pub(super) struct Problem<'a, T> {
    pub(super) level: Level,
    /// [B, H, d].
    pub(super) q: &'a [f32],
    /// [B, H_kv, S_max, d].
    pub(super) keys: &'a [T],
    /// [B, H_kv, S_max, d].
    pub(super) values: &'a [T],
    pub(super) spans: &'a Spans,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) capacity: usize,
    pub(super) dim: usize,
    pub(super) softcap: Option<f32>,
}

/// The result of a SparQ step.
pub(super) struct Output {
    /// [B, H, d].
    pub(super) output: Vec<f32>,
    /// [B, H_kv, k]; -1 after the last selected position.
    pub(super) positions: Vec<i64>,
    /// [B, H].
    pub(super) alpha: Vec<f32>,
}

impl<T: Element> Problem<'_, T> {
    /// Returns dense attention, [B, H, d].
    pub(super) fn dense(&self) -> Vec<f32> {
        let (heads, width) = (self.batch_heads(), self.group * self.dim);
        let mut output = vec![0.0; heads * width];
        let bytes = self.valid() * self.kv_heads * 2 * self.dim * size_of::<T>();
        let threads = Threads::new(heads, bytes);
        output
            .par_chunks_mut(width)
            .with_min_len(threads.min_len(heads))
            .enumerate()
            .for_each(|(head, output)| {
                let (start, end) = self.span(head);
                self.attend(head, threads, Span(start, end), output);
            });
        output
    }

    /// Runs a SparQ step with k selected positions. Alpha is 0 if it is neither traced nor needed.
    pub(super) fn sparq<C: Storage>(
        &self,
        sketch: &KeySketch<'_, C>,
        config: &SparqConfig,
        k: usize,
        traced: bool,
    ) -> Output {
        let (heads, width) = (self.batch_heads(), self.group * self.dim);
        let mut found = Output {
            output: vec![0.0; heads * width],
            positions: vec![-1; heads * k],
            alpha: vec![0.0; heads * self.group],
        };
        let scored = config.rank * size_of::<C::Cell>() / C::POSITIONS;
        let attended = heads * k * 2 * self.dim * size_of::<T>();
        let threads = Threads::new(heads, self.valid() * self.kv_heads * scored + attended);
        let needs_alpha = traced || config.mean_value.applies(self.group);
        let step = SparqStep {
            problem: self,
            sketch,
            config,
            columns: Columns::new(config, self.group, needs_alpha),
            threads,
        };
        (
            found.output.par_chunks_mut(width),
            found.positions.par_chunks_mut(k.max(1)),
            found.alpha.par_chunks_mut(self.group),
        )
            .into_par_iter()
            .with_min_len(threads.min_len(heads))
            .enumerate()
            .for_each(|(head, (output, positions, alpha))| {
                let mut scratch = Scratch::take();
                step.run(head, &mut scratch, output, positions, alpha);
                scratch.put_back();
            });
        found
    }

    /// Writes exact attention of one batch head over the given positions, [g, d].
    fn attend(&self, head: usize, threads: Threads, positions: impl Positions, output: &mut [f32]) {
        let dim = self.dim;
        let width = dim.next_multiple_of(MAX_LANES);
        let scale = (dim as f32).sqrt();
        let mut q = vec![0.0; self.group * width];
        let queries = self.query(head).chunks_exact(dim);
        for (to, from) in q.chunks_exact_mut(width).zip(queries) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from / scale;
            }
        }
        let matrix = head * self.capacity * dim..(head + 1) * self.capacity * dim;
        let attend = Attend {
            q: &q,
            keys: &self.keys[matrix.clone()],
            values: &self.values[matrix],
            dim,
            width,
            softcap: self.softcap,
        };
        let parts = threads.parts(positions.count(), MIN_POSITIONS);
        let state = if parts.len() == 1 {
            attend.over(self.level, positions)
        } else {
            let over = |part| attend.over(self.level, positions.part(part));
            let states: Vec<OnlineSoftmax> = parts.into_par_iter().map(over).collect();
            // Merged in the order of the positions, so that the result does not depend on which
            // thread finishes first.
            let merged = states.into_iter().reduce(|all, state| all.merge(&state));
            merged.unwrap_or_else(|| OnlineSoftmax::new(self.group, width))
        };
        for (head, output) in output.chunks_exact_mut(dim).enumerate() {
            state.write(head, output);
        }
    }

    fn batch_heads(&self) -> usize {
        self.spans.batch() * self.kv_heads
    }

    /// Returns the number of valid positions of all sequences.
    fn valid(&self) -> usize {
        let spans = self.spans;
        (0..spans.batch()).map(|b| spans.count(b)).sum()
    }

    /// Returns the span of a batch head's sequence.
    fn span(&self, head: usize) -> (usize, usize) {
        let sequence = head / self.kv_heads;
        let end = self.spans.end[sequence].min(self.capacity);
        (self.spans.start[sequence].min(end), end)
    }

    /// Returns the queries of a batch head, [g, d].
    fn query(&self, head: usize) -> &[f32] {
        &self.q[head * self.group * self.dim..(head + 1) * self.group * self.dim]
    }
}

/// A SparQ step: the part that all batch heads share.
struct SparqStep<'a, T, C: Storage> {
    problem: &'a Problem<'a, T>,
    sketch: &'a KeySketch<'a, C>,
    config: &'a SparqConfig,
    columns: Columns,
    threads: Threads,
}

/// The scored positions of a batch head.
#[derive(Clone, Copy)]
struct Scored {
    head: usize,
    start: usize,
    end: usize,
    /// The first position of the local window.
    window: usize,
    slots: Slots,
}

impl Scored {
    /// Returns the blocks that contain the positions.
    fn blocks(&self) -> Range<usize> {
        self.start / BLOCK..self.end.div_ceil(BLOCK)
    }

    /// Returns the first position of the first block.
    fn first(&self) -> usize {
        self.blocks().start * BLOCK
    }
}

impl<T: Element, C: Storage> SparqStep<'_, T, C> {
    /// Runs all stages for one batch head: writes its outputs [g, d], selected positions [k] and
    /// alpha [g].
    fn run(
        &self,
        head: usize,
        scratch: &mut Scratch,
        output: &mut [f32],
        positions: &mut [i64],
        alpha: &mut [f32],
    ) {
        let (problem, dim) = (self.problem, self.problem.dim);
        let (start, end) = problem.span(head);
        let (count, k) = (end - start, positions.len());
        let mut selected = std::mem::take(&mut scratch.selected);
        selected.clear();
        if count <= k {
            selected.extend(start as u32..end as u32);
            alpha.fill(1.0);
        } else {
            let local = self.config.local_window.min(k);
            let scored = Scored {
                head,
                start,
                end,
                window: end - local,
                slots: Slots::of::<C>(problem.level),
            };
            let mut buffers = scratch.buffers(scored.blocks().len(), self.columns);
            self.score(&scored, &mut buffers);
            self.select(&scored, &mut buffers, k - local, &mut selected, alpha);
        }
        problem.attend(head, self.threads, selected.as_slice(), output);
        for (to, &position) in positions.iter_mut().zip(&selected) {
            *to = i64::from(position);
        }
        scratch.selected = selected;

        // Also where alpha is 1, since every output must show a NaN in the mean.
        if self.config.mean_value.applies(problem.group) {
            let v_sum = &self.sketch.v_sum[head * dim..(head + 1) * dim];
            let scale = 1.0 / count.max(1) as f32;
            for (y, &alpha) in output.chunks_exact_mut(dim).zip(&*alpha) {
                for (y, sum) in y.iter_mut().zip(v_sum) {
                    *y = *y * alpha + sum * scale * (1.0 - alpha);
                }
            }
        }
    }

    /// Stage 1: writes weights, the factors from weights to probabilities, and sort keys.
    fn score(&self, scored: &Scored, buffers: &mut Buffers<'_>) {
        let (problem, columns) = (self.problem, self.columns);
        let (heads, all) = (columns.heads, columns.count());
        let channels = scored.head * problem.dim..(scored.head + 1) * problem.dim;
        let scales = self.sketch.scales.map(|scales| &scales[channels.clone()]);
        let q = problem.query(scored.head);
        let query = Query::new(q, problem.dim, scales, self.config, columns);
        let row = problem.capacity.div_ceil(C::POSITIONS);
        let start = |component: u32| (channels.start + component as usize) * row;
        let components = query.components.iter();
        let rows = components.map(|&component| &self.sketch.cells[start(component)..][..row]);
        let rows: Vec<&[C::Cell]> = rows.collect();

        let blocks = scored.blocks();
        let min_len = self.threads.min_len(blocks.len());
        (
            buffers.weights.par_chunks_mut(all * BLOCK),
            buffers.statistics.par_chunks_mut(columns.statistics()),
            buffers.keys.par_chunks_mut(BLOCK),
        )
            .into_par_iter()
            .with_min_len(min_len)
            .enumerate()
            .for_each(|(block, (weights, statistics, keys))| {
                problem.level.run(ScoreBlock::<C> {
                    query: &query,
                    rows: &rows,
                    slots: scored.slots,
                    first: (blocks.start + block) * BLOCK,
                    valid: (scored.start, scored.end),
                    window: scored.window,
                    scores: Scores {
                        weights,
                        statistics,
                        keys,
                    },
                });
            });
        normalize(buffers.statistics, columns);

        if columns.ranking.is_none() {
            let (weights, statistics) = (&*buffers.weights, &*buffers.statistics);
            buffers
                .keys
                .par_chunks_mut(BLOCK)
                .with_min_len(min_len.max(4))
                .enumerate()
                .for_each(|(block, keys)| {
                    problem.level.run(GroupKeys {
                        weights: &weights[block * all * BLOCK..][..heads * BLOCK],
                        scales: &statistics[block * columns.statistics()..][..heads],
                        slots: scored.slots,
                        first: (blocks.start + block) * BLOCK,
                        eligible: (scored.start, scored.window),
                        keys,
                    });
                });
        }
    }

    /// Stage 2: appends the `count` highest-ranked positions and the local window to `selected`,
    /// and sets the alpha of the heads whose softmax is taken.
    fn select(
        &self,
        scored: &Scored,
        buffers: &mut Buffers<'_>,
        count: usize,
        selected: &mut Vec<u32>,
        alpha: &mut [f32],
    ) {
        let (heads, all) = (self.columns.heads, self.columns.count());
        let candidates = scored.window - scored.start;
        let level = self.problem.level;
        buffers
            .top_k
            .select(level, buffers.keys, candidates, count, selected);
        alpha.fill(0.0);
        let mut add = |slot: usize| {
            let (block, within) = (slot / BLOCK, slot % BLOCK);
            for (h, alpha) in alpha[..heads].iter_mut().enumerate() {
                let weight = buffers.weights[(block * all + h) * BLOCK + within];
                *alpha += weight * buffers.statistics[block * self.columns.statistics() + h];
            }
        };
        for slot in selected.iter_mut() {
            add(*slot as usize);
            *slot = (scored.first() + scored.slots.position(*slot as usize)) as u32;
        }
        for position in scored.window..scored.end {
            add(scored.slots.slot(position - scored.first()));
            selected.push(position as u32);
        }
        for alpha in alpha {
            *alpha = alpha.clamp(0.0, 1.0);
        }
    }
}

/// Replaces the maxima of the blocks by the factors from a block's weights to probabilities.
fn normalize(statistics: &mut [f32], columns: Columns) {
    let heads = columns.heads;
    for head in 0..heads {
        let largest = statistics
            .chunks_exact(columns.statistics())
            .fold(f32::MIN, |m, block| m.max(block[head]));
        let mut total = 0.0;
        for block in statistics.chunks_exact_mut(columns.statistics()) {
            block[head] = (block[head] - largest).exp();
            total += block[head] * block[heads + head];
        }
        let total = f32::max(total, f32::MIN_POSITIVE);
        for block in statistics.chunks_exact_mut(columns.statistics()) {
            block[head] /= total;
        }
    }
}
