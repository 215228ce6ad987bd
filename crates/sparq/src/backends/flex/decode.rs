//! The decode steps over a whole batch: which thread does what, and the steps in their order.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::attend::{Attend, Positions, Span};
use super::element::Element;
use super::score::{BLOCK, Channel, Columns, GroupKeys, Query, ScoreBlock, Scores, Slots};
use super::select::Selection;
use super::simd::{Level, MOST_LANES};
use super::softmax::State;
use crate::SparqConfig;
use crate::ops::Spans;

/// Bytes below which a step stays on the calling thread: handing work over costs more than reading them.
const WORTH_A_THREAD: usize = 1 << 18;

/// Positions below which exact attention of one head is not divided among threads.
const LEAST_ROWS: usize = 256;

/// The keys and values of a cache, and the queries.
pub(super) struct Task<'a, T> {
    pub(super) level: Level,
    /// [B, H, d].
    pub(super) q: &'a [f32],
    /// [B, H_kv, S_max, d].
    pub(super) keys: &'a [T],
    /// [B, H_kv, S_max, d].
    pub(super) values: &'a [T],
    pub(super) rows: &'a Spans,
    pub(super) kv_heads: usize,
    /// g.
    pub(super) group: usize,
    /// S_max.
    pub(super) capacity: usize,
    /// d.
    pub(super) dim: usize,
}

/// A key sketch and what else SparQ reads.
pub(super) struct Sketch<'a, C: Channel> {
    /// Rows of the same length, [B, H_kv, d].
    pub(super) cells: &'a [C::Cell],
    /// The steps of the codes, [B, H_kv, d].
    pub(super) steps: Option<&'a [f32]>,
    /// The sum of V over the valid positions, [B, H_kv, d].
    pub(super) v_sum: &'a [f32],
}

/// What a SparQ step returns.
pub(super) struct Output {
    /// [B, H, d].
    pub(super) output: Vec<f32>,
    /// [B, H_kv, k]; -1 behind the last one kept.
    pub(super) positions: Vec<i64>,
    /// [B, H].
    pub(super) alpha: Vec<f32>,
}

impl<T: Element> Task<'_, T> {
    /// Dense attention, [B, H, d].
    pub(super) fn dense(&self) -> Vec<f32> {
        let (heads, row) = (self.heads(), self.group * self.dim);
        let mut output = vec![0.0; heads * row];
        let bytes = self.valid() * self.kv_heads * 2 * self.dim * size_of::<T>();
        let threads = Threads::new(heads, bytes);
        output
            .par_chunks_mut(row)
            .with_min_len(threads.least(heads))
            .enumerate()
            .for_each(|(head, output)| {
                let (start, end) = self.span(head);
                self.attend(head, threads, Span(start, end), output);
            });
        output
    }

    /// A SparQ step that keeps k positions. Its alpha is 0 where it is neither asked for nor used.
    pub(super) fn sparq<C: Channel>(
        &self,
        sketch: &Sketch<'_, C>,
        config: &SparqConfig,
        k: usize,
        traced: bool,
    ) -> Output {
        let (heads, row) = (self.heads(), self.group * self.dim);
        let mut found = Output {
            output: vec![0.0; heads * row],
            positions: vec![-1; heads * k],
            alpha: vec![0.0; heads * self.group],
        };
        let scored = config.rank * size_of::<C::Cell>() / C::POSITIONS;
        let attended = heads * k * 2 * self.dim * size_of::<T>();
        let threads = Threads::new(heads, self.valid() * self.kv_heads * scored + attended);
        let wants_alpha = traced || config.mean_value.applies(self.group);
        let columns = Columns::new(config, self.group, wants_alpha);
        (
            found.output.par_chunks_mut(row),
            found.positions.par_chunks_mut(k.max(1)),
            found.alpha.par_chunks_mut(self.group),
        )
            .into_par_iter()
            .with_min_len(threads.least(heads))
            .enumerate()
            .for_each(|(head, (output, positions, alpha))| {
                let mut scratch = Scratch::take();
                self.sparq_head(
                    head,
                    sketch,
                    config,
                    columns,
                    threads,
                    &mut scratch,
                    (output, positions, alpha),
                );
                scratch.put_back();
            });
        found
    }

    /// Steps 1 to 7 for one key/value head.
    #[allow(clippy::too_many_arguments)]
    fn sparq_head<C: Channel>(
        &self,
        head: usize,
        sketch: &Sketch<'_, C>,
        config: &SparqConfig,
        columns: Columns,
        threads: Threads,
        scratch: &mut Scratch,
        (output, positions, alpha): (&mut [f32], &mut [i64], &mut [f32]),
    ) {
        let (start, end) = self.span(head);
        let (count, k) = (end - start, positions.len());
        let mut chosen = std::mem::take(&mut scratch.chosen);
        chosen.clear();
        if count <= k {
            chosen.extend(start as u32..end as u32);
            alpha.fill(1.0);
        } else {
            self.choose(
                head,
                sketch,
                config,
                columns,
                threads,
                k,
                scratch,
                &mut chosen,
                alpha,
            );
        }
        self.attend(head, threads, chosen.as_slice(), output);
        for (to, &position) in positions.iter_mut().zip(&chosen) {
            *to = i64::from(position);
        }
        scratch.chosen = chosen;

        // Step 7. Also where alpha is 1: a NaN in the mean is in every output.
        if config.mean_value.applies(self.group) {
            let v_sum = &sketch.v_sum[head * self.dim..(head + 1) * self.dim];
            let scale = 1.0 / count.max(1) as f32;
            for (y, &alpha) in output.chunks_exact_mut(self.dim).zip(&*alpha) {
                for (y, sum) in y.iter_mut().zip(v_sum) {
                    *y = *y * alpha + sum * scale * (1.0 - alpha);
                }
            }
        }
    }

    /// Steps 1 to 5 where not everything is kept: appends the k positions to `chosen` and sets the alpha of the heads whose softmax is taken.
    #[allow(clippy::too_many_arguments)]
    fn choose<C: Channel>(
        &self,
        head: usize,
        sketch: &Sketch<'_, C>,
        config: &SparqConfig,
        columns: Columns,
        threads: Threads,
        k: usize,
        scratch: &mut Scratch,
        chosen: &mut Vec<u32>,
        alpha: &mut [f32],
    ) {
        let (level, heads, all) = (self.level, columns.heads, columns.count());
        let (start, end) = self.span(head);
        let channels = head * self.dim..(head + 1) * self.dim;
        let steps = sketch.steps.map(|steps| &steps[channels.clone()]);
        let query = Query::new(self.query(head), self.dim, steps, config, columns);
        let row = self.capacity.div_ceil(C::POSITIONS);
        let rows: Vec<&[C::Cell]> = query
            .components
            .iter()
            .map(|&component| &sketch.cells[(channels.start + component as usize) * row..][..row])
            .collect();

        let local = config.local_window.min(k);
        let window = end - local;
        let slots = Slots::of::<C>(level);
        let blocks = start / BLOCK..end.div_ceil(BLOCK);
        let room = scratch.room(blocks.len(), columns);
        let least = threads.least(blocks.len());
        (
            room.weights.par_chunks_mut(all * BLOCK),
            room.sums.par_chunks_mut(sums_of(columns)),
            room.keys.par_chunks_mut(BLOCK),
        )
            .into_par_iter()
            .with_min_len(least)
            .enumerate()
            .for_each(|(block, (weights, sums, keys))| {
                level.run(ScoreBlock::<C> {
                    query: &query,
                    rows: &rows,
                    slots,
                    first: (blocks.start + block) * BLOCK,
                    valid: (start, end),
                    window,
                    scores: Scores {
                        weights,
                        sums,
                        keys,
                    },
                });
            });

        // The blocks' sums become what a weight of each block is worth as a probability.
        for head in 0..heads {
            let largest = room
                .sums
                .chunks_exact(sums_of(columns))
                .fold(f32::MIN, |m, sums| m.max(sums[head]));
            let mut total = 0.0;
            for sums in room.sums.chunks_exact_mut(sums_of(columns)) {
                sums[head] = (sums[head] - largest).exp();
                total += sums[head] * sums[heads + head];
            }
            let total = f32::max(total, f32::MIN_POSITIVE);
            for sums in room.sums.chunks_exact_mut(sums_of(columns)) {
                sums[head] /= total;
            }
        }
        let (weights, sums) = (&*room.weights, &*room.sums);
        if columns.ranking.is_none() {
            room.keys
                .par_chunks_mut(BLOCK)
                .with_min_len(least.max(4))
                .enumerate()
                .for_each(|(block, keys)| {
                    level.run(GroupKeys {
                        weights: &weights[block * all * BLOCK..][..heads * BLOCK],
                        scales: &sums[block * sums_of(columns)..][..heads],
                        slots,
                        first: (blocks.start + block) * BLOCK,
                        eligible: (start, window),
                        keys,
                    });
                });
        }

        let first = blocks.start * BLOCK;
        room.selection
            .choose(level, room.keys, window - start, k - local, chosen);
        alpha.fill(0.0);
        let mut add = |slot: usize| {
            let (block, within) = (slot / BLOCK, slot % BLOCK);
            for (h, alpha) in alpha[..heads].iter_mut().enumerate() {
                let weight = weights[(block * all + h) * BLOCK + within];
                *alpha += weight * sums[block * sums_of(columns) + h];
            }
        };
        for slot in chosen.iter_mut() {
            add(*slot as usize);
            *slot = (first + slots.position(*slot as usize)) as u32;
        }
        for position in window..end {
            add(slots.slot(position - first));
            chosen.push(position as u32);
        }
        for alpha in alpha {
            *alpha = alpha.clamp(0.0, 1.0);
        }
    }

    /// Step 6 for one key/value head: exact attention over the given positions, [g, d].
    fn attend(&self, head: usize, threads: Threads, positions: impl Positions, output: &mut [f32]) {
        let dim = self.dim;
        let width = dim.next_multiple_of(MOST_LANES);
        let scale = (dim as f32).sqrt();
        let mut q = vec![0.0; self.group * width];
        for (to, from) in q
            .chunks_exact_mut(width)
            .zip(self.query(head).chunks_exact(dim))
        {
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
        };
        let count = positions.count();
        let parts = threads.parts(count, LEAST_ROWS);
        let state = if parts == 1 {
            attend.over(self.level, positions)
        } else {
            let part = |part: usize| positions.part(share(count, parts, part));
            let states: Vec<State> = (0..parts)
                .into_par_iter()
                .map(|index| attend.over(self.level, part(index)))
                .collect();
            // In the order of the positions, so that the result does not depend on which thread was first.
            states
                .into_iter()
                .reduce(|all, state| all.merge(&state))
                .unwrap_or_else(|| State::new(self.group, width))
        };
        for (head, output) in output.chunks_exact_mut(dim).enumerate() {
            state.write(head, output);
        }
    }

    /// B H_kv.
    fn heads(&self) -> usize {
        self.rows.batch() * self.kv_heads
    }

    /// Valid positions of all sequences.
    fn valid(&self) -> usize {
        (0..self.rows.batch()).map(|row| self.rows.count(row)).sum()
    }

    /// The valid positions of a key/value head's sequence.
    fn span(&self, head: usize) -> (usize, usize) {
        let row = head / self.kv_heads;
        let end = self.rows.end[row].min(self.capacity);
        (self.rows.start[row].min(end), end)
    }

    /// The queries of a key/value head, [g, d].
    fn query(&self, head: usize) -> &[f32] {
        &self.q[head * self.group * self.dim..(head + 1) * self.group * self.dim]
    }
}

/// How many threads a step is divided among.
#[derive(Clone, Copy)]
struct Threads {
    /// Threads for each key/value head; 1 where there are heads enough.
    each: usize,
    /// Whether the whole step stays on the calling thread.
    alone: bool,
}

impl Threads {
    /// For a step that reads `bytes` for `heads` key/value heads.
    fn new(heads: usize, bytes: usize) -> Self {
        let threads = rayon::current_num_threads();
        let alone = threads == 1 || bytes < WORTH_A_THREAD;
        // Four heads a thread even out; fewer are divided, so that no thread waits for another's last head.
        let each = match alone || heads >= 4 * threads {
            true => 1,
            false => (4 * threads).div_ceil(heads.max(1)).min(2 * threads),
        };
        Self { each, alone }
    }

    /// The smallest share of `count` equal pieces that may move to another thread.
    fn least(self, count: usize) -> usize {
        match self.alone {
            true => count.max(1),
            false => 1,
        }
    }

    /// Parts to divide `count` positions into.
    fn parts(self, count: usize, least: usize) -> usize {
        self.each.min(count / least).max(1)
    }
}

/// The positions of one of `parts` equal parts.
fn share(count: usize, parts: usize, part: usize) -> Range<usize> {
    count * part / parts..count * (part + 1) / parts
}

/// Memory that a SparQ step works in. Each thread keeps its own from one step to the next: fresh memory costs a page fault for every 4 KiB, more than
/// the scores themselves.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    sums: Vec<f32>,
    keys: Vec<u32>,
    chosen: Vec<u32>,
    selection: Selection,
}

/// A [`Scratch`] cut to size.
struct Room<'a> {
    /// [blocks, columns, BLOCK].
    weights: &'a mut [f32],
    /// [blocks, 2, heads].
    sums: &'a mut [f32],
    /// [blocks, BLOCK].
    keys: &'a mut [u32],
    selection: &'a mut Selection,
}

/// Numbers that a block leaves of its softmax; one, unused, where none is taken.
fn sums_of(columns: Columns) -> usize {
    (2 * columns.heads).max(1)
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    /// The thread's memory. While one head's step waits for other threads this one may start on another head, and finds none: that gets its own.
    fn take() -> Box<Self> {
        SCRATCH.take().unwrap_or_default()
    }

    fn put_back(self: Box<Self>) {
        SCRATCH.set(Some(self));
    }

    fn room(&mut self, blocks: usize, columns: Columns) -> Room<'_> {
        fn cut<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
            if memory.len() < len {
                memory.resize(len, T::default());
            }
            &mut memory[..len]
        }
        Room {
            weights: cut(&mut self.weights, blocks * columns.count() * BLOCK),
            sums: cut(&mut self.sums, blocks * sums_of(columns)),
            keys: cut(&mut self.keys, blocks * BLOCK),
            selection: &mut self.selection,
        }
    }
}
