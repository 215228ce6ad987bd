//! Decode steps over a whole batch: the order of the stages, and their division among threads.

use std::ops::Range;

use super::attend::{Attend, Positions, Span};
use super::element::{RowElement, Rows};
use super::online_softmax::OnlineSoftmax;
use super::query::{Columns, Query};
use super::score::{GroupKeys, ScoreBlock, Scores};
use super::scratch::{Buffers, Scratch};
use super::simd::{Level, MAX_LANES};
use super::sketch::{BLOCK, KeySketch, Slots, Storage};
use super::threads::Threads;
use crate::SparqConfig;
use crate::ops::Spans;

/// The queries, keys and values of a decode step.
pub(super) struct Problem<'a, T> {
    pub(super) level: Level,
    /// [B, H, d].
    pub(super) q: &'a [f32],
    /// [B, H_kv, S_max, d].
    pub(super) keys: Rows<'a, T>,
    /// [B, H_kv, S_max, d].
    pub(super) values: Rows<'a, T>,
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

impl<T: RowElement> Problem<'_, T> {
    /// Returns dense attention, [B, H, d].
    pub(super) fn dense(&self) -> Vec<f32> {
        let heads = self.batch_heads();
        let mut output = vec![0.0; heads * self.group * self.dim];
        let bytes = self.valid() * self.kv_heads * 2 * self.keys.row_bytes();
        let spans: Vec<Span> = (0..heads)
            .map(|head| self.span(head))
            .map(|(start, end)| Span(start, end))
            .collect();
        self.attend(0, Threads::new(heads, bytes), &spans, &mut output);
        output
    }

    /// Returns exact attention over given positions, [B, H, d].
    ///
    /// `lists` [B, N, k] are positions of N KV heads, of which KV head h takes those of `heads[h]`.
    /// Of each list the first min(k, count) count.
    ///
    /// Returns `None` for a head or a position outside the cache.
    pub(super) fn over_positions(
        &self,
        lists: &[u32],
        [of, k]: [usize; 2],
        heads: &[u32],
    ) -> Option<Vec<f32>> {
        let list = |head: usize| {
            let (start, end) = self.span(head);
            let kv_head = *heads.get(head % self.kv_heads)? as usize;
            let first = (kv_head < of).then_some((head / self.kv_heads * of + kv_head) * k)?;
            let list = lists.get(first..first + k.min(end - start))?;
            let inside = list
                .iter()
                .all(|&position| (position as usize) < self.capacity);
            inside.then_some(list)
        };
        let lists: Vec<&[u32]> = (0..self.batch_heads()).map(list).collect::<Option<_>>()?;
        let rows: usize = lists.iter().map(|list| list.len()).sum();
        let mut output = vec![0.0; lists.len() * self.group * self.dim];
        let threads = Threads::new(lists.len(), rows * 2 * self.keys.row_bytes());
        self.attend(0, threads, &lists, &mut output);
        Some(output)
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
        let attended = heads * k * 2 * self.keys.row_bytes();
        let threads = Threads::new(heads, self.valid() * self.kv_heads * scored + attended);
        let needs_alpha = traced || config.mean_value.applies(self.group);
        let step = SparqStep {
            problem: self,
            sketch,
            config,
            columns: Columns::new(config, self.group, needs_alpha),
            k,
            needs_alpha,
        };
        // All heads in one part if each is shared by threads, or a part for each head.
        let count = if threads.divides_heads() { heads } else { 1 };
        let parts = found
            .output
            .chunks_mut(count * width)
            .zip(found.positions.chunks_mut((count * k).max(1)))
            .zip(found.alpha.chunks_mut(count * self.group));
        let mut parts = parts
            .enumerate()
            .map(|(part, ((output, positions), alpha))| Heads {
                first: part * count,
                output,
                positions,
                alpha,
            });
        let run = |heads: Heads<'_>, threads| {
            let mut scratch = Scratch::take();
            step.run(heads, threads, &mut scratch);
            scratch.put_back();
        };
        match threads.divides_heads() {
            true => parts.by_ref().for_each(|all| run(all, threads)),
            false => threads.for_each(parts.collect(), |head| run(head, Threads::ONE)),
        }
        found
    }

    /// Writes exact attention of the batch heads from `first` on, each over its positions,
    /// [heads, g, d].
    fn attend<P: Positions>(
        &self,
        first: usize,
        threads: Threads,
        positions: &[P],
        output: &mut [f32],
    ) {
        let (group, dim) = (self.group, self.dim);
        let width = dim.next_multiple_of(MAX_LANES);
        let scale = (dim as f32).sqrt();
        let mut q = vec![0.0; positions.len() * group * width];
        let queries = self.q[first * group * dim..].chunks_exact(dim);
        for (to, from) in q.chunks_exact_mut(width).zip(queries) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from / scale;
            }
        }
        let parts = positions.iter().enumerate().flat_map(|(head, positions)| {
            let parts = threads.parts(positions.count(), P::MIN_PART);
            parts.map(move |part| (head, positions.part(part)))
        });
        let parts: Vec<(usize, P)> = parts.collect();
        let mut states = vec![None; parts.len()];
        threads.for_each(
            parts.iter().zip(&mut states).collect(),
            |(&(head, part), state)| {
                let matrix = (first + head) * self.capacity;
                let attend = Attend {
                    q: &q[head * group * width..(head + 1) * group * width],
                    keys: self.keys.part(matrix, self.capacity),
                    values: self.values.part(matrix, self.capacity),
                    dim,
                    width,
                    softcap: self.softcap,
                };
                *state = Some(attend.over(self.level, part));
            },
        );
        // Merged in the order of the positions, so that the result does not depend on which thread
        // finishes first.
        let mut states = parts.iter().zip(states).peekable();
        for (head, output) in output.chunks_exact_mut(group * dim).enumerate() {
            let mut merged: Option<OnlineSoftmax> = None;
            while let Some((_, state)) = states.next_if(|((of, _), _)| *of == head) {
                merged = match (merged, state) {
                    (Some(merged), Some(state)) => Some(merged.merge(&state)),
                    (merged, state) => merged.or(state),
                };
            }
            for (head, output) in output.chunks_exact_mut(dim).enumerate() {
                if let Some(merged) = &merged {
                    merged.write(head, output);
                }
            }
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
    k: usize,
    needs_alpha: bool,
}

/// Consecutive batch heads, and what a step writes for them.
struct Heads<'a> {
    first: usize,
    /// [heads, g, d].
    output: &'a mut [f32],
    /// [heads, k].
    positions: &'a mut [i64],
    /// [heads, g].
    alpha: &'a mut [f32],
}

/// A batch head with more positions than are selected.
struct Scored<'a, C: Storage> {
    /// The index among the heads of a [`Heads`].
    index: usize,
    start: usize,
    end: usize,
    /// The first position of the local window.
    window: usize,
    slots: Slots,
    query: Query,
    /// The rows of the sketch for the selected components.
    rows: Vec<&'a [C::Cell]>,
}

impl<C: Storage> Scored<'_, C> {
    /// Returns the blocks that contain the positions.
    fn blocks(&self) -> Range<usize> {
        self.start / BLOCK..self.end.div_ceil(BLOCK)
    }

    /// Returns the first position of the first block.
    fn first(&self) -> usize {
        self.blocks().start * BLOCK
    }
}

impl<T: RowElement, C: Storage> SparqStep<'_, T, C> {
    /// Runs all stages for some batch heads, each stage for all of them.
    fn run(&self, heads: Heads<'_>, threads: Threads, scratch: &mut Scratch) {
        let Heads {
            first,
            output,
            positions,
            alpha,
        } = heads;
        let (problem, k, group) = (self.problem, self.k, self.problem.group);
        let count = alpha.len() / group;
        let mut selected = scratch.take_selected(count);
        let mut scored = Vec::new();
        for (index, (selected, alpha)) in selected
            .iter_mut()
            .zip(alpha.chunks_exact_mut(group))
            .enumerate()
        {
            let (start, end) = problem.span(first + index);
            match end - start <= k {
                true => {
                    selected.extend(start as u32..end as u32);
                    alpha.fill(1.0);
                }
                false => scored.push(self.scored(index, first + index)),
            }
        }
        if !scored.is_empty() {
            let blocks = scored.iter().map(|head| head.blocks().len()).sum();
            let mut buffers = scratch.buffers(blocks, count, self.columns);
            self.score(&scored, threads, &mut buffers);
            self.select(&scored, threads, &mut buffers, &mut selected, alpha);
        }
        let lists: Vec<&[u32]> = selected.iter().map(Vec::as_slice).collect();
        problem.attend(first, threads, &lists, output);
        for (positions, selected) in positions.chunks_mut(k.max(1)).zip(&lists) {
            for (to, &position) in positions.iter_mut().zip(*selected) {
                *to = i64::from(position);
            }
        }
        scratch.put_back_selected(selected);
        // Also where alpha is 1, since every output must show a NaN in the mean.
        if self.config.mean_value.applies(group) {
            self.add_mean(first, output, alpha);
        }
    }

    /// Mixes the mean value, weighted with 1 - alpha, into the outputs.
    fn add_mean(&self, first: usize, output: &mut [f32], alpha: &[f32]) {
        let (dim, group) = (self.problem.dim, self.problem.group);
        for (row, (y, &alpha)) in output.chunks_exact_mut(dim).zip(alpha).enumerate() {
            let head = first + row / group;
            let (start, end) = self.problem.span(head);
            let v_sum = &self.sketch.v_sum[head * dim..(head + 1) * dim];
            let scale = 1.0 / (end - start).max(1) as f32;
            for (y, sum) in y.iter_mut().zip(v_sum) {
                *y = *y * alpha + sum * scale * (1.0 - alpha);
            }
        }
    }

    /// Selects the components of a batch head.
    fn scored(&self, index: usize, head: usize) -> Scored<'_, C> {
        let (problem, dim) = (self.problem, self.problem.dim);
        let (start, end) = problem.span(head);
        let channels = head * dim..(head + 1) * dim;
        let scales = self.sketch.scales.map(|scales| &scales[channels.clone()]);
        let query = Query::new(problem.query(head), dim, scales, self.config, self.columns);
        let row = problem.capacity.div_ceil(C::POSITIONS);
        let start_of = |component: u32| (channels.start + component as usize) * row;
        let components = query.components.iter();
        let rows = components.map(|&component| &self.sketch.cells[start_of(component)..][..row]);
        Scored {
            index,
            start,
            end,
            window: end - self.config.local_window.min(self.k),
            slots: Slots::of::<C>(problem.level),
            rows: rows.collect(),
            query,
        }
    }

    /// Stage 1: writes weights, the factors from weights to probabilities, and sort keys.
    fn score(&self, scored: &[Scored<'_, C>], threads: Threads, buffers: &mut Buffers<'_>) {
        let (level, columns) = (self.problem.level, self.columns);
        let (heads, all) = (columns.heads, columns.count());
        let blocks = scored
            .iter()
            .flat_map(|head| head.blocks().map(move |block| (head, block)));
        let tasks = blocks
            .clone()
            .zip(buffers.weights.chunks_mut(all * BLOCK))
            .zip(buffers.statistics.chunks_mut(columns.statistics()))
            .zip(buffers.keys.chunks_mut(BLOCK));
        threads.for_each(
            tasks.collect(),
            |((((head, block), weights), statistics), keys)| {
                level.run(ScoreBlock::<C> {
                    query: &head.query,
                    rows: &head.rows,
                    slots: head.slots,
                    first: block * BLOCK,
                    valid: (head.start, head.end),
                    window: head.window,
                    scores: Scores {
                        weights,
                        statistics,
                        keys,
                    },
                });
            },
        );
        let mut rest = &mut *buffers.statistics;
        for head in scored {
            let len = head.blocks().len() * columns.statistics();
            let (of_head, after) = rest.split_at_mut(len);
            normalize(of_head, columns);
            rest = after;
        }
        if columns.ranking.is_none() {
            let tasks = blocks
                .zip(buffers.weights.chunks(all * BLOCK))
                .zip(buffers.statistics.chunks(columns.statistics()))
                .zip(buffers.keys.chunks_mut(BLOCK));
            threads.for_each(
                tasks.collect(),
                |((((head, block), weights), statistics), keys)| {
                    level.run(GroupKeys {
                        weights: &weights[..heads * BLOCK],
                        scales: &statistics[..heads],
                        slots: head.slots,
                        first: block * BLOCK,
                        eligible: (head.start, head.window),
                        keys,
                    });
                },
            );
        }
    }

    /// Stage 2: appends the highest-ranked positions and the local window to `selected`, and sets
    /// the alpha of the heads whose softmax is taken.
    fn select(
        &self,
        scored: &[Scored<'_, C>],
        threads: Threads,
        buffers: &mut Buffers<'_>,
        selected: &mut [Vec<u32>],
        alpha: &mut [f32],
    ) {
        let columns = self.columns;
        let mut outputs: Vec<_> = selected
            .iter_mut()
            .zip(alpha.chunks_exact_mut(self.problem.group))
            .map(Some)
            .collect();
        let mut tasks = Vec::with_capacity(scored.len());
        let mut first = 0;
        for (head, top_k) in scored.iter().zip(&mut *buffers.top_k) {
            let (start, end) = (first, first + head.blocks().len());
            first = end;
            let ranked = Ranked {
                keys: &buffers.keys[start * BLOCK..end * BLOCK],
                weights: &buffers.weights[start * columns.count() * BLOCK..],
                statistics: &buffers.statistics[start * columns.statistics()..],
            };
            if let Some((selected, alpha)) = outputs[head.index].take() {
                tasks.push((head, top_k, ranked, selected, alpha));
            }
        }
        threads.for_each(tasks, |(head, top_k, ranked, selected, alpha)| {
            let local = head.end - head.window;
            let candidates = head.window - head.start;
            let count = self.k - local;
            top_k.select(self.problem.level, ranked.keys, candidates, count, selected);
            if self.needs_alpha {
                let window = (head.window..head.end).map(|at| head.slots.slot(at - head.first()));
                let slots = selected.iter().map(|&slot| slot as usize).chain(window);
                self.sum_alpha(&ranked, slots, alpha);
            }
            for slot in selected.iter_mut() {
                *slot = (head.first() + head.slots.position(*slot as usize)) as u32;
            }
            selected.extend(head.window as u32..head.end as u32);
        });
    }

    /// Sets alpha to the sum of the probabilities at the given slots.
    fn sum_alpha(
        &self,
        ranked: &Ranked<'_>,
        slots: impl Iterator<Item = usize>,
        alpha: &mut [f32],
    ) {
        let (heads, all) = (self.columns.heads, self.columns.count());
        for slot in slots {
            let (block, within) = (slot / BLOCK, slot % BLOCK);
            for (h, alpha) in alpha[..heads].iter_mut().enumerate() {
                let weight = ranked.weights[(block * all + h) * BLOCK + within];
                *alpha += weight * ranked.statistics[block * self.columns.statistics() + h];
            }
        }
        for alpha in alpha {
            *alpha = alpha.clamp(0.0, 1.0);
        }
    }
}

/// The ranked positions of a batch head, from its first block on.
struct Ranked<'a> {
    /// [blocks, BLOCK].
    keys: &'a [u32],
    /// [blocks.., columns, BLOCK].
    weights: &'a [f32],
    /// [blocks.., 2, heads].
    statistics: &'a [f32],
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
