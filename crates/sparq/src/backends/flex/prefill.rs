//! Causal attention of many queries, with blocks of keys against tiles of queries.
//!
//! A row is one query of one head. All heads of a group read the same K rows and V rows, so a tile
//! has the rows of a few queries times the group.

mod few;
mod panel;

use std::ops::Range;

use self::panel::{BLOCK, KeyBlock, Panel};
use super::element::Element;
use super::online_softmax::OnlineSoftmax;
use super::simd::{Level, MAX_LANES};
use super::threads::Threads;
use crate::ops::Spans;

/// The rows of a tile, unless a group is larger.
///
/// Converting an element of the cache costs as much as multiplying it with a few rows.
const TILE: usize = 96;

/// The keys of one tile are not divided among threads below this number of positions.
const MIN_POSITIONS: usize = 256;

/// The queries, keys and values of a prefill.
pub(super) struct Prefill<'a, T> {
    pub(super) level: Level,
    /// [B, H, T, d].
    pub(super) q: &'a [f32],
    /// [B, H_kv, S_max, d].
    pub(super) keys: &'a [T],
    /// [B, H_kv, S_max, d].
    pub(super) values: &'a [T],
    /// The spans with the queries.
    pub(super) spans: &'a Spans,
    pub(super) window: Option<usize>,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    /// T.
    pub(super) len: usize,
    pub(super) capacity: usize,
    pub(super) dim: usize,
    pub(super) softcap: Option<f32>,
}

/// Consecutive queries of one batch head, with the outputs of each head of the group.
struct Tile<'a> {
    batch_head: usize,
    queries: Range<usize>,
    /// [g] slices of [queries, d].
    outputs: Vec<&'a mut [f32]>,
}

impl<T: Element> Prefill<'_, T> {
    /// Returns the attention, [B, H, T, d].
    pub(super) fn attend(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.q.len()];
        if output.is_empty() {
            return output;
        }
        if self.len <= few::MOST {
            self.attend_few(&mut output);
            return output;
        }
        let tiles = self.tiles(&mut output);
        let scores: usize = tiles.iter().map(|tile| self.scores(tile)).sum();
        // A thread multiplies with about eight rows in the time that a decode step needs to read
        // the element.
        let bytes = scores * self.dim * size_of::<T>() / 8;
        let threads = Threads::new(tiles.len(), bytes);
        match threads.divides_heads() {
            true => self.attend_parts(tiles, threads),
            false => threads.for_each(tiles, |mut tile| {
                let rows = self.rows(tile.batch_head, tile.queries.clone());
                let state = rows.over(self.level, rows.seen());
                self.write(&state, &mut tile);
            }),
        }
        output
    }

    /// Attends with few tiles, the positions of each divided among threads.
    fn attend_parts(&self, tiles: Vec<Tile<'_>>, threads: Threads) {
        let parts = tiles.iter().enumerate().flat_map(|(index, tile)| {
            let seen = self.reach(tile.batch_head).of(&tile.queries);
            let parts = threads.parts(seen.len(), MIN_POSITIONS);
            parts.map(move |part| (index, seen.start + part.start..seen.start + part.end))
        });
        let parts: Vec<(usize, Range<usize>)> = parts.collect();
        let mut states = vec![None; parts.len()];
        let tasks = parts.iter().zip(&mut states).collect();
        threads.for_each(
            tasks,
            |((index, part), state): (&(usize, Range<usize>), _)| {
                let Tile {
                    batch_head,
                    queries,
                    ..
                } = &tiles[*index];
                let rows = self.rows(*batch_head, queries.clone());
                *state = Some(rows.over(self.level, part.clone()));
            },
        );
        // Merged in the order of the positions, so that the result does not depend on which thread
        // finishes first.
        let mut states = parts.iter().zip(states).peekable();
        for (index, mut tile) in tiles.into_iter().enumerate() {
            let mut merged: Option<OnlineSoftmax> = None;
            while let Some((_, state)) = states.next_if(|((of, _), _)| *of == index) {
                merged = match (merged, state) {
                    (Some(merged), Some(state)) => Some(merged.merge(&state)),
                    (merged, state) => merged.or(state),
                };
            }
            if let Some(merged) = merged {
                self.write(&merged, &mut tile);
            }
        }
    }

    /// Divides the output [B, H, T, d] into tiles, those with the most positions first.
    fn tiles<'o>(&self, output: &'o mut [f32]) -> Vec<Tile<'o>> {
        let Self {
            group, len, dim, ..
        } = *self;
        let count = (TILE / group).clamp(1, len);
        let mut tiles = Vec::new();
        for (batch_head, heads) in output.chunks_mut(group * len * dim).enumerate() {
            let mut of_heads: Vec<_> = heads
                .chunks_mut(len * dim)
                .map(|head| head.chunks_mut(count * dim))
                .collect();
            tiles.extend((0..len).step_by(count).map(|first| Tile {
                batch_head,
                queries: first..(first + count).min(len),
                outputs: of_heads.iter_mut().filter_map(Iterator::next).collect(),
            }));
        }
        tiles.sort_by_key(|tile| std::cmp::Reverse(self.scores(tile)));
        tiles
    }

    /// Returns the number of scores of a tile, masked ones included.
    fn scores(&self, tile: &Tile<'_>) -> usize {
        let reach = self.reach(tile.batch_head);
        tile.queries.len() * self.group * reach.of(&tile.queries).len()
    }

    fn reach(&self, batch_head: usize) -> Reach {
        let sequence = batch_head / self.kv_heads;
        let end = self.spans.end[sequence].min(self.capacity);
        Reach {
            before: end.saturating_sub(self.len),
            start: self.spans.start[sequence],
            window: self.window.unwrap_or(usize::MAX),
        }
    }

    /// Returns the rows of consecutive queries.
    fn rows(&self, batch_head: usize, queries: Range<usize>) -> Rows<'_, T> {
        let Self { group, dim, .. } = *self;
        let matrix = batch_head * self.capacity * dim;
        let matrix = matrix..matrix + self.capacity * dim;
        Rows {
            q: &self.q[batch_head * group * self.len * dim..],
            keys: &self.keys[matrix.clone()],
            values: &self.values[matrix],
            queries,
            len: self.len,
            group,
            dim,
            reach: self.reach(batch_head),
            softcap: self.softcap,
        }
    }

    /// Writes the outputs of a tile from the softmax state of its rows.
    fn write(&self, state: &OnlineSoftmax, tile: &mut Tile<'_>) {
        for (head, output) in tile.outputs.iter_mut().enumerate() {
            for (query, output) in output.chunks_exact_mut(self.dim).enumerate() {
                state.write(query * self.group + head, output);
            }
        }
    }
}

/// The positions that the queries of a sequence attend to.
#[derive(Clone, Copy)]
struct Reach {
    /// The position of the first query.
    before: usize,
    /// The first valid position.
    start: usize,
    window: usize,
}

impl Reach {
    /// Returns the position of a query, the last one it attends to.
    #[inline(always)]
    fn last(self, query: usize) -> usize {
        self.before + query
    }

    /// Returns the first position that a query attends to. Left padding attends to itself.
    #[inline(always)]
    fn first(self, query: usize) -> usize {
        let own = self.last(query);
        self.start
            .min(own)
            .max((own + 1).saturating_sub(self.window))
    }

    /// Returns the positions that any of some consecutive queries attends to.
    fn of(self, queries: &Range<usize>) -> Range<usize> {
        self.first(queries.start)..self.last(queries.end - 1) + 1
    }
}

/// The rows of a tile: row i is head i % g of query i / g.
struct Rows<'a, T> {
    /// The queries from the first head of the group on, [.., T, d].
    q: &'a [f32],
    /// [S_max, d].
    keys: &'a [T],
    /// [S_max, d].
    values: &'a [T],
    queries: Range<usize>,
    len: usize,
    group: usize,
    dim: usize,
    reach: Reach,
    softcap: Option<f32>,
}

impl<T: Element> Rows<'_, T> {
    fn count(&self) -> usize {
        self.queries.len() * self.group
    }

    /// Returns the positions that any row attends to.
    fn seen(&self) -> Range<usize> {
        self.reach.of(&self.queries)
    }

    /// Returns the query vector of a row.
    fn query(&self, row: usize) -> &[f32] {
        let query = self.queries.start + row / self.group;
        let at = (row % self.group * self.len + query) * self.dim;
        &self.q[at..at + self.dim]
    }

    /// Returns the softmax state over the given positions.
    fn over(&self, level: Level, positions: Range<usize>) -> OnlineSoftmax {
        let count = self.count();
        let widest = level.vectors() * level.lanes();
        let mut panels: Vec<Panel> = (0..count)
            .step_by(widest)
            .map(|first| Panel::new(self, first..(first + widest).min(count), level.lanes()))
            .collect();
        let mut block = KeyBlock::new(self.dim);
        let mut weights = vec![0.0; BLOCK * widest];
        for first in positions.clone().step_by(BLOCK) {
            block.load(level, self, first..(first + BLOCK).min(positions.end));
            for panel in &mut panels {
                panel.attend(level, &block, &mut weights);
            }
        }
        let width = self.dim.next_multiple_of(MAX_LANES);
        let mut state = OnlineSoftmax::new(count, width);
        for panel in &panels {
            panel.copy_to(&mut state, width, self.dim);
        }
        state
    }
}
