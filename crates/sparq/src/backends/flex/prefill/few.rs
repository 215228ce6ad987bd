//! Causal attention of few queries, each with the result of a decode step, bit for bit.
//!
//! Positions are divided and summed as a decode step of each query would do it. Queries that have
//! their blocks of positions in common, and fill the lanes of vectors, share panels. These and the
//! other queries take turns at short runs of positions, so that K and V are read from memory once
//! for all of them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::panel::{KeyBlock, Panel};
use super::{Prefill, Rows};
use crate::backends::flex::attend::{self, Attend, Positions, Span};
use crate::backends::flex::element::Element;
use crate::backends::flex::online_softmax::OnlineSoftmax;
use crate::backends::flex::simd::{Level, MAX_LANES};
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
        let mut together = self.together(part, &rows);
        let first = together.as_ref().map_or(0, |together| together.queries);
        let longest = part.queries.iter().map(|(_, seen)| seen.len()).max();
        for turn in (0..longest.unwrap_or(0)).step_by(TURN) {
            if let Some(together) = &mut together {
                together.turn(level, &rows, turn);
            }
            for (query, (_, seen)) in part.queries.iter().enumerate().skip(first) {
                let start = (seen.start + turn).min(seen.end);
                let seen = start..seen.end.min(start + TURN);
                attend(query, seen, &mut states[query]);
            }
        }
        if let Some(together) = together {
            let mut all = OnlineSoftmax::new(first * group, width);
            for panel in &together.panels {
                panel.copy_to(&mut all, width, dim);
            }
            for (query, state) in states[..first].iter_mut().enumerate() {
                *state = all.heads(query * group..(query + 1) * group);
                let end = part.queries[query].1.end;
                attend(query, together.positions.end..end, state);
            }
        }
        states
    }

    /// Returns the first queries of a part that share panels, as many as fill them, and their
    /// common whole blocks of positions.
    fn together(&self, part: &Part, rows: &Rows<'_, T>) -> Option<Together> {
        let lanes = self.level.lanes();
        let start = part.queries[0].1.start;
        let alike = part.queries.iter();
        let alike = alike.take_while(|(_, seen)| seen.start == start).count();
        let fills = |queries: &usize| {
            let rest = queries * self.group % lanes;
            rest == 0 || rest >= lanes * 5 / 8
        };
        let queries = (1..=alike).rev().find(fills)?;
        let shortest = part.queries[..queries]
            .iter()
            .map(|(_, seen)| seen.len())
            .min()?;
        let positions = start..start + shortest / attend::BLOCK * attend::BLOCK;
        if positions.is_empty() || !self.dim.is_multiple_of(lanes) {
            return None;
        }
        let (count, widest) = (queries * self.group, self.level.vectors() * lanes);
        let panels = (0..count)
            .step_by(widest)
            .map(|first| Panel::new(rows, first..(first + widest).min(count), lanes));
        Some(Together {
            queries,
            positions,
            panels: panels.collect(),
            block: KeyBlock::new(self.dim),
            weights: vec![0.0; attend::BLOCK * widest],
        })
    }
}

/// Queries whose rows lie in the lanes of panels. A K row or V row is converted once for all.
struct Together {
    queries: usize,
    positions: Range<usize>,
    panels: Vec<Panel>,
    block: KeyBlock,
    /// Working memory of the panels.
    weights: Vec<f32>,
}

impl Together {
    /// Attends to the positions of a turn.
    fn turn<T: Element>(&mut self, level: Level, rows: &Rows<'_, T>, turn: usize) {
        let start = self.positions.start + turn;
        let end = self.positions.end.min(start + TURN);
        for first in (start..end).step_by(attend::BLOCK) {
            self.block.load(level, rows, first..first + attend::BLOCK);
            for panel in &mut self.panels {
                panel.attend_in_order(level, &self.block, &mut self.weights);
            }
        }
    }
}
