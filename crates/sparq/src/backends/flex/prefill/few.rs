//! Causal attention of few queries, each with the result of a decode step, bit for bit.
//!
//! Positions are divided and summed as a decode step of each query would do it. Queries that have
//! their [`blocks`] of positions in common attend to them together. These and the other queries
//! take turns at short runs of positions, so that K and V are read from memory once for all of
//! them.

mod blocks;

use std::ops::Range;

use self::blocks::{Blocks, Memory};
use super::Prefill;
use crate::backends::flex::attend::{self, Attend, Positions, Span};
use crate::backends::flex::element::RowElement;
use crate::backends::flex::online_softmax::OnlineSoftmax;
use crate::backends::flex::simd::MAX_LANES;
use crate::backends::flex::threads::Threads;

/// The most queries of a sequence.
pub(super) const MOST: usize = 16;

/// The positions of a turn. The K rows and V rows of a turn stay in the L2 cache.
const TURN: usize = 16 * attend::BLOCK;

/// The positions of one part of a batch head, for each query that has this part.
struct Part {
    batch_head: usize,
    queries: Vec<(usize, Range<usize>)>,
}

impl<T: RowElement> Prefill<'_, T> {
    /// Writes the attention of at most [`MOST`] queries per sequence, [B, H, T, d].
    pub(super) fn attend_few(&self, output: &mut [f32]) {
        let Self {
            group, len, dim, ..
        } = *self;
        let batch_heads = self.spans.batch() * self.kv_heads;
        let reads: Vec<Threads> = (0..len).map(|query| self.threads(query)).collect();
        let threads = reads[len - 1];
        let parts: Vec<Part> = (0..batch_heads)
            .flat_map(|batch_head| self.parts(batch_head, &reads))
            .collect();
        let mut states: Vec<Vec<OnlineSoftmax>> = vec![Vec::new(); parts.len()];
        let tasks = parts.iter().zip(&mut states).collect();
        threads.for_each(tasks, |(part, states): (&Part, &mut Vec<OnlineSoftmax>)| {
            *states = self.attend_part(part);
        });
        let mut states = states.into_iter();
        let heads = parts.chunk_by(|a, b| a.batch_head == b.batch_head);
        let heads = heads.zip(output.chunks_exact_mut(group * len * dim));
        let heads = heads.map(|(parts, output)| {
            let states: Vec<_> = states.by_ref().take(parts.len()).collect();
            (parts, states, output)
        });
        threads.for_each(heads.collect(), |(parts, states, output)| {
            for (query, state) in merge(parts, states, len).into_iter().enumerate() {
                for head in 0..group {
                    let row = head * len + query;
                    state.write(head, &mut output[row * dim..(row + 1) * dim]);
                }
            }
        });
    }

    /// Returns the division among threads of a decode step at a query.
    fn threads(&self, query: usize) -> Threads {
        let batch = self.spans.batch();
        let positions = (0..batch).map(|sequence| {
            let reach = self.reach(sequence * self.kv_heads);
            reach.of(&(query..query + 1)).len()
        });
        let bytes = positions.sum::<usize>() * self.kv_heads * 2 * self.keys.row_bytes();
        Threads::new(batch * self.kv_heads, bytes)
    }

    /// Returns the parts of a batch head in the order of their positions.
    fn parts(&self, batch_head: usize, reads: &[Threads]) -> Vec<Part> {
        let reach = self.reach(batch_head);
        let mut parts: Vec<Part> = Vec::new();
        for (query, threads) in reads.iter().enumerate() {
            let seen = reach.of(&(query..query + 1));
            let own = threads.parts(seen.len(), Span::MIN_PART);
            for (index, part) in own.enumerate() {
                if index == parts.len() {
                    parts.push(Part {
                        batch_head,
                        queries: Vec::new(),
                    });
                }
                let part = seen.start + part.start..seen.start + part.end;
                parts[index].queries.push((query, part));
            }
        }
        parts
    }

    /// Returns the softmax states of the queries of a part.
    fn attend_part(&self, part: &Part) -> Vec<OnlineSoftmax> {
        let Self {
            level, group, dim, ..
        } = *self;
        let width = dim.next_multiple_of(MAX_LANES);
        let scale = (dim as f32).sqrt();
        let queries = part.queries[0].0..part.queries[0].0 + part.queries.len();
        let rows = self.rows(part.batch_head, queries);
        let mut q = vec![0.0; rows.count() * width];
        for (row, to) in q.chunks_exact_mut(width).enumerate() {
            for (to, from) in to.iter_mut().zip(rows.query(row)) {
                *to = from / scale;
            }
        }
        let attend = |query: usize, seen: Range<usize>, state: &mut OnlineSoftmax| {
            let attend = Attend {
                q: &q[query * group * width..(query + 1) * group * width],
                keys: rows.keys,
                values: rows.values,
                dim,
                width,
                softcap: self.softcap,
            };
            attend.add(level, Span(seen.start, seen.end), state);
        };
        let new = |_: &_| OnlineSoftmax::new(group, width);
        let mut states: Vec<OnlineSoftmax> = part.queries.iter().map(new).collect();
        let mut together = self.together(part, width);
        let first = together.as_ref().map_or(0, |together| together.queries);
        let longest = part.queries.iter().map(|(_, seen)| seen.len()).max();
        for turn in (0..longest.unwrap_or(0)).step_by(TURN) {
            if let Some(together) = &mut together {
                let start = together.positions.start + turn;
                let end = together.positions.end.min(start + TURN);
                let start = start.min(end);
                level.run(Blocks {
                    q: &q[..first * group * width],
                    keys: rows.keys.part(start, end - start),
                    values: rows.values.part(start, end - start),
                    dim,
                    width,
                    softcap: self.softcap,
                    state: &mut together.state,
                    memory: &mut together.memory,
                });
            }
            for (query, (_, seen)) in part.queries.iter().enumerate().skip(first) {
                let start = (seen.start + turn).min(seen.end);
                let seen = start..seen.end.min(start + TURN);
                attend(query, seen, &mut states[query]);
            }
        }
        if let Some(together) = together {
            for (query, state) in states[..first].iter_mut().enumerate() {
                *state = together.state.heads(query * group..(query + 1) * group);
                let end = part.queries[query].1.end;
                attend(query, together.positions.end..end, state);
            }
        }
        states
    }

    /// Returns the first queries of a part that have whole blocks of positions in common, if there
    /// are several.
    fn together(&self, part: &Part, width: usize) -> Option<Together> {
        let start = part.queries[0].1.start;
        let alike = part.queries.iter();
        let alike = alike.take_while(|(_, seen)| seen.start == start);
        let lens: Vec<usize> = alike.map(|(_, seen)| seen.len()).collect();
        let (queries, shortest) = (lens.len(), lens.into_iter().min()?);
        let positions = start..start + shortest / attend::BLOCK * attend::BLOCK;
        if queries == 1 || positions.is_empty() || !self.dim.is_multiple_of(self.level.lanes()) {
            return None;
        }
        let rows = queries * self.group;
        Some(Together {
            queries,
            positions,
            state: OnlineSoftmax::new(rows, width),
            memory: Memory::new(rows),
        })
    }
}

/// Returns the states of the queries of a batch head, merged in the order of the positions, as in a
/// decode step.
fn merge(parts: &[Part], states: Vec<Vec<OnlineSoftmax>>, queries: usize) -> Vec<OnlineSoftmax> {
    let mut merged: Vec<Option<OnlineSoftmax>> = vec![None; queries];
    for (part, states) in parts.iter().zip(states) {
        for ((query, _), state) in part.queries.iter().zip(states) {
            let before = merged[*query].take();
            merged[*query] = Some(match before {
                Some(before) => before.merge(&state),
                None => state,
            });
        }
    }
    // Every query has at least one part.
    merged.into_iter().flatten().collect()
}

/// Queries with common blocks of positions.
struct Together {
    queries: usize,
    positions: Range<usize>,
    state: OnlineSoftmax,
    memory: Memory,
}
