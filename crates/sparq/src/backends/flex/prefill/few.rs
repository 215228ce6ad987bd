//! Causal attention of few queries, each with the result of a decode step, bit for bit.
//!
//! Positions are divided and summed as a decode step of each query would do it. The queries take
//! turns at short runs of positions, so that K and V are read from memory once for all of them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Prefill;
use crate::backends::flex::attend::{self, Attend, Positions, Span};
use crate::backends::flex::element::Element;
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

impl<T: Element> Prefill<'_, T> {
    /// Writes the attention of at most [`MOST`] queries per sequence, [B, H, T, d].
    pub(super) fn attend_few(&self, output: &mut [f32]) {
        let Self {
            group, len, dim, ..
        } = *self;
        let batch_heads = self.spans.batch() * self.kv_heads;
        let reads: Vec<Threads> = (0..len).map(|query| self.threads(query)).collect();
        let parts: Vec<Part> = (0..batch_heads)
            .flat_map(|batch_head| self.parts(batch_head, &reads))
            .collect();
        let mut states: Vec<Vec<OnlineSoftmax>> = vec![Vec::new(); parts.len()];
        let tasks = parts.iter().zip(&mut states).collect();
        reads[len - 1].for_each(tasks, |(part, states): (&Part, &mut Vec<OnlineSoftmax>)| {
            *states = self.attend_part(part);
        });
        // Merged in the order of the positions, as in a decode step.
        let mut merged: BTreeMap<(usize, usize), OnlineSoftmax> = BTreeMap::new();
        for (part, states) in parts.iter().zip(states) {
            for ((query, _), state) in part.queries.iter().zip(states) {
                let key = (part.batch_head, *query);
                let state = match merged.remove(&key) {
                    Some(before) => before.merge(&state),
                    None => state,
                };
                merged.insert(key, state);
            }
        }
        for ((batch_head, query), state) in merged {
            for head in 0..group {
                let row = (batch_head * group + head) * len + query;
                state.write(head, &mut output[row * dim..(row + 1) * dim]);
            }
        }
    }

    /// Returns the division among threads of a decode step at a query.
    fn threads(&self, query: usize) -> Threads {
        let batch = self.spans.batch();
        let positions = (0..batch).map(|sequence| {
            let reach = self.reach(sequence * self.kv_heads);
            reach.of(&(query..query + 1)).len()
        });
        let bytes = positions.sum::<usize>() * self.kv_heads * 2 * self.dim * size_of::<T>();
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
            group, len, dim, ..
        } = *self;
        let width = dim.next_multiple_of(MAX_LANES);
        let scale = (dim as f32).sqrt();
        let matrix = part.batch_head * self.capacity * dim;
        let matrix = matrix..matrix + self.capacity * dim;
        let (keys, values) = (&self.keys[matrix.clone()], &self.values[matrix]);
        let mut q = vec![0.0; part.queries.len() * group * width];
        for (row, to) in q.chunks_exact_mut(width).enumerate() {
            let (query, head) = (part.queries[row / group].0, row % group);
            let from = ((part.batch_head * group + head) * len + query) * dim;
            for (to, from) in to.iter_mut().zip(&self.q[from..from + dim]) {
                *to = from / scale;
            }
        }
        let new = |_: &_| OnlineSoftmax::new(group, width);
        let mut states: Vec<OnlineSoftmax> = part.queries.iter().map(new).collect();
        let longest = part.queries.iter().map(|(_, seen)| seen.len()).max();
        for turn in (0..longest.unwrap_or(0)).step_by(TURN) {
            let queries = part.queries.iter().zip(q.chunks_exact(group * width));
            for (((_, seen), q), state) in queries.zip(&mut states) {
                let start = (seen.start + turn).min(seen.end);
                let attend = Attend {
                    q,
                    keys,
                    values,
                    dim,
                    width,
                    softcap: self.softcap,
                };
                attend.add(self.level, Span(start, seen.end.min(start + TURN)), state);
            }
        }
        states
    }
}
