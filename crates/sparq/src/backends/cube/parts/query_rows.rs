//! The queries of causal attention as rows of tiles.
//!
//! The query heads of a KV head are the rows of one matrix [T g, d], in which the heads of a token
//! are neighbours. A tile of rows then covers few tokens, and reads K and V once for all heads.

use cubecl::prelude::*;

use super::batch_head::{BatchHead, BatchShape, locate};

/// The sizes of a launch of causal attention that are known only when it runs.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct CausalShape {
    /// T, the queries of a sequence.
    pub len: u32,
    /// S_max.
    pub capacity: u32,
    /// The positions that a query attends to at most.
    pub window: u32,
    /// Tiles of the rows of a KV head.
    pub tiles: u32,
    /// Splits of the positions of a tile.
    pub splits: u32,
    /// KV heads whose tiles run side by side.
    pub heads_at_once: u32,
}

/// The tile that a cube works on.
#[derive(CubeType)]
pub(crate) struct RowTile {
    /// The batch head.
    pub index: usize,
    /// The number of the tile among those of its batch head.
    pub tile: usize,
    /// The number of the split.
    pub split: usize,
}

/// Returns the tile of a cube, or none: its `index` is then past the last batch head.
///
/// The splits of a tile are neighbours. Then come the KV heads of which K and V fit in the L2 cache
/// together, each with its longest tile first, so that short tiles fill the gaps at the end.
#[cube]
pub(crate) fn tile_of_cube(shape: &BatchShape, causal: &CausalShape) -> RowTile {
    let (splits, tiles) = (causal.splits as usize, causal.tiles as usize);
    let at_once = causal.heads_at_once as usize;
    let split = CUBE_POS % splits;
    let number = CUBE_POS / splits;
    let first = number / (tiles * at_once) * at_once;
    let mut index = shape.count();
    let mut tile = 0usize;
    if first < shape.count() {
        let heads = min(at_once, shape.count() - first);
        let within = number - first * tiles;
        // Past the last tile of the last heads there is none.
        if within < heads * tiles {
            index = first + within % heads;
            tile = tiles - 1 - within / heads;
        }
    }
    RowTile { index, tile, split }
}

/// The positions that the queries of a sequence attend to.
#[derive(CubeType)]
pub(crate) struct QuerySpan {
    /// The first valid position.
    start: usize,
    /// One past the last position.
    end: usize,
    /// T.
    len: usize,
    /// The positions that a query attends to at most.
    window: usize,
}

#[cube]
impl QuerySpan {
    /// One past the last position that query `token` attends to: its own.
    pub fn stop(&self, token: usize) -> usize {
        let stop = self.end + token + 1;
        stop - min(stop, self.len)
    }

    /// The first position that query `token` attends to. Left padding attends to itself. Never
    /// decreases with `token`.
    pub fn begin(&self, token: usize) -> usize {
        let stop = self.stop(token);
        let own = stop - min(stop, 1usize);
        max(min(own, self.start), stop - min(stop, self.window))
    }
}

/// The rows of a tile, and the positions that they attend to together.
#[derive(CubeType)]
pub(crate) struct TileRows {
    /// The batch head.
    pub head: BatchHead,
    /// The positions of each query.
    pub span: QuerySpan,
    /// The first row.
    pub first: usize,
    /// Rows of the batch head: T g.
    pub count: usize,
    /// The first position of this split.
    pub from: usize,
    /// One past the last position of this split.
    pub to: usize,
    /// One past the last position that a row of the tile attends to. Later ones may hold NaN.
    pub stop: usize,
}

/// Returns the rows of a tile of `rows` rows. Splits are whole tiles of `keys` positions.
#[cube]
pub(crate) fn rows_of_tile(
    spans: &[u32],
    tile: &RowTile,
    shape: &BatchShape,
    causal: &CausalShape,
    #[comptime] rows: usize,
    #[comptime] keys: usize,
    #[comptime] group: usize,
) -> TileRows {
    let head = locate(spans, tile.index, shape);
    let len = causal.len as usize;
    let span = QuerySpan {
        start: head.start,
        // Not that of the head, which is never before the start: queries may all be left padding.
        end: spans[shape.batch as usize + head.sequence] as usize,
        len,
        window: causal.window as usize,
    };
    let first = tile.tile * rows;
    let count = len * group;
    let last = min(first + rows, count) - 1;
    let begin = span.begin(first / group);
    let stop = span.stop(last / group);
    let positions = stop - min(begin, stop);
    let share = positions.div_ceil(keys).div_ceil(causal.splits as usize) * keys;
    let from = min(begin + tile.split * share, stop);
    TileRows {
        head,
        span,
        first,
        count,
        from,
        to: min(from + share, stop),
        stop,
    }
}

#[cube]
impl TileRows {
    /// The token of row `row`. Rows past the last one repeat it.
    pub fn token(&self, row: usize, #[comptime] group: usize) -> usize {
        min(row, self.count - 1) / group
    }

    /// The offset in q of row `row`. Rows past the last one repeat it.
    pub fn query<Q: Float>(&self, q: &Tensor<Q>, row: usize, #[comptime] group: usize) -> usize {
        let row = min(row, self.count - 1);
        let head = self.head.kv_head * group + row % group;
        self.head.sequence * q.stride(0) + head * q.stride(1) + row / group * q.stride(2)
    }

    /// The number of row `row` among the rows of the output, [B, H, T].
    pub fn output(&self, row: usize, #[comptime] group: usize) -> usize {
        output_row(self.head.index, row, self.span.len, group)
    }
}

/// The number of row `row` of batch head `index` among the rows of the output, [B, H, T].
#[cube]
pub(crate) fn output_row(index: usize, row: usize, len: usize, #[comptime] group: usize) -> usize {
    (index * group + row % group) * len + row / group
}
