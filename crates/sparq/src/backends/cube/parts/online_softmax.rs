//! Exact attention over positions of one batch head, by online softmax: the inner part of dense
//! attention and of stage 3.
//!
//! A few units share a K row. Each holds a part of the query, of the row and of the running output,
//! so that rows are read in whole vectors. Each such group of units visits its own positions with a
//! running maximum, sum and output. The states of all groups of a cube are merged at the end.

use cubecl::prelude::*;

use super::reduce::group_sum;
use super::row_codes::{PER_WORD, RowScales, element};
use super::score::LARGEST_SCORE;

/// The sizes that exact attention is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttendBlueprint {
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// Query heads that one pass over the positions serves.
    pub heads: usize,
    /// Elements of a vector of K and V: N floats, or the codes of N words.
    pub vector: usize,
    /// K and V are codes of 8 bits.
    pub coded: bool,
    /// Codes are converted with CUDA's permutation of bytes.
    pub permutes: bool,
    /// Units that share a K row.
    pub lanes: usize,
    /// Vectors of a row that each of them holds.
    pub vectors: usize,
    /// Rows that each group of units loads before it uses the first.
    pub rows_at_once: usize,
    /// Units of a cube.
    pub units: u32,
    /// See [`reduce`](super::reduce).
    pub plane: u32,
}

impl AttendBlueprint {
    /// Bytes of shared memory of [`CubeSoftmax`] and of the queries.
    pub fn shared_bytes(&self) -> usize {
        let numbers = (self.group + self.heads) * self.head_dim + 2 * self.heads;
        4 * (numbers + self.sets() * self.heads * (self.head_dim + 3))
    }

    /// Returns N.
    pub fn size(&self) -> usize {
        match self.coded {
            true => self.vector / PER_WORD,
            false => self.vector,
        }
    }

    /// Groups of units with a row of their own.
    pub fn groups(&self) -> usize {
        self.units as usize / self.lanes
    }

    /// Groups of units whose states are merged by shuffles.
    fn groups_in_plane(&self) -> usize {
        (self.plane as usize / self.lanes).max(1)
    }

    /// Sets of units whose states are merged through shared memory: planes, or groups if those are
    /// larger.
    fn sets(&self) -> usize {
        self.units as usize / self.lanes.max(self.plane as usize)
    }

    /// Returns the passes over the positions.
    pub fn passes(&self) -> usize {
        self.group.div_ceil(self.heads)
    }
}

/// K and V of the cache, [B, H_kv, S_max, d], in vectors of N floats, or of N words of codes.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct KvRows<E: Numeric, N: Size> {
    /// K.
    pub keys: Box<[Vector<E, N>]>,
    /// V.
    pub values: Box<[Vector<E, N>]>,
}

/// The positions that a cube attends to.
#[derive(CubeType)]
pub(crate) struct Positions<'a> {
    /// The number of positions in the cache before those of the batch head.
    base: usize,
    /// The selected positions, if `gathered`; otherwise not read.
    selected: &'a Shared<[u32]>,
    /// The first position of a range, unless `gathered`.
    from: usize,
    /// The number of positions.
    count: usize,
    /// The positions are `selected[..count]`, and otherwise `from..from + count`.
    #[cube(comptime)]
    gathered: bool,
}

#[cube]
impl<'a> Positions<'a> {
    /// The first `count` of the selected positions.
    pub fn gathered(base: usize, selected: &'a Shared<[u32]>, count: usize) -> Positions<'a> {
        Positions::<'a> {
            base,
            selected,
            from: 0usize,
            count,
            gathered: true,
        }
    }

    /// `count` consecutive positions. `unused` stands in for selected positions.
    pub fn range(
        base: usize,
        from: usize,
        count: usize,
        unused: &'a Shared<[u32]>,
    ) -> Positions<'a> {
        Positions::<'a> {
            base,
            selected: unused,
            from,
            count,
            gathered: false,
        }
    }

    /// Returns whether there is a position.
    pub fn any(&self) -> bool {
        self.count > 0
    }
}

/// The merged state of a cube for the heads of a pass. Outputs are relative to the maxima and not
/// yet divided by the sums.
#[derive(CubeType)]
pub(crate) struct CubeSoftmax {
    /// [heads, d].
    pub output: Shared<[f32]>,
    /// [heads].
    pub largest: Shared<[f32]>,
    /// [heads].
    pub sum: Shared<[f32]>,
    /// The outputs of the sets, [sets, heads, d].
    merge: Shared<[f32]>,
    /// The maxima and then the sums of the sets, each [heads, sets].
    states: Shared<[f32]>,
    /// e^(maximum of the set - maximum of all sets), [heads, sets].
    factors: Shared<[f32]>,
}

#[cube]
impl CubeSoftmax {
    pub fn new(#[comptime] plan: AttendBlueprint) -> CubeSoftmax {
        let heads = comptime!(plan.heads);
        let sets = comptime!(plan.sets());
        CubeSoftmax {
            output: Shared::<[f32]>::new_slice(comptime!(heads * plan.head_dim)),
            largest: Shared::<[f32]>::new_slice(heads),
            sum: Shared::<[f32]>::new_slice(heads),
            merge: Shared::<[f32]>::new_slice(comptime!(sets * heads * plan.head_dim)),
            states: Shared::<[f32]>::new_slice(comptime!(2 * sets * heads)),
            factors: Shared::<[f32]>::new_slice(comptime!(sets * heads)),
        }
    }

    /// Returns element `i` of `output`, divided by the sum of its head `h`.
    pub fn normalised(&self, i: usize, h: usize) -> f32 {
        self.output[i] / max(self.sum[h], f32::MIN_POSITIVE)
    }

    /// Merges the states that [`OnlineSoftmax::store`] wrote. Ends with a barrier.
    fn merge_sets(&mut self, #[comptime] plan: AttendBlueprint) {
        let d = comptime!(plan.head_dim);
        let heads = comptime!(plan.heads);
        let units = comptime!(plan.units as usize);
        let sets = comptime!(plan.sets());
        let unit = UNIT_POS as usize;
        // The factors are computed once for each set and head.
        for round in 0..comptime!(heads * sets).div_ceil(units) {
            let i = round * units + unit;
            if i < comptime!(heads * sets) {
                let h = i / sets;
                let mut top = (-LARGEST_SCORE).runtime();
                #[unroll]
                for other in 0..sets {
                    top = max(top, self.states[h * sets + other]);
                }
                self.factors[i] = (self.states[i] - top).exp();
                if i % sets == 0 {
                    self.largest[h] = top;
                }
            }
        }
        sync_cube();
        for round in 0..comptime!(heads * d).div_ceil(units) {
            let i = round * units + unit;
            if i < comptime!(heads * d) {
                let h = i / d;
                let mut total = 0.0f32;
                let mut value = 0.0f32;
                #[unroll]
                for other in 0..sets {
                    let factor = self.factors[h * sets + other];
                    total += self.states[comptime!(sets * heads) + h * sets + other] * factor;
                    value += self.merge[other * comptime!(heads * d) + i] * factor;
                }
                self.output[i] = value;
                if i % d == 0 {
                    self.sum[h] = total;
                }
            }
        }
        sync_cube();
    }
}

/// The running state of a group of units, in registers: each unit holds its part of the outputs.
#[derive(CubeType)]
struct OnlineSoftmax {
    /// [heads].
    largest: Array<f32>,
    /// The sum of exponentials relative to `largest`, [heads].
    sum: Array<f32>,
    /// [heads, width].
    output: Array<f32>,
}

/// Rows that a group of units loaded, `rows_at_once` of them.
#[derive(CubeType)]
struct LoadedRows<E: Numeric, N: Size> {
    /// [rows_at_once, vectors].
    keys: Array<Vector<E, N>>,
    /// [rows_at_once, vectors].
    values: Array<Vector<E, N>>,
    /// [rows_at_once], if the rows are codes.
    key_scales: Array<f32>,
    /// [rows_at_once], if the rows are codes.
    value_scales: Array<f32>,
    /// The first position that the cube loaded, counted among the positions of the call.
    begin: usize,
    /// The number of this group of units.
    group: usize,
    /// The number of positions of the call.
    count: usize,
}

#[cube]
impl<E: Numeric, N: Size> LoadedRows<E, N> {
    /// Returns whether row `t` is one of the call's positions.
    fn is_valid(&self, #[comptime] t: usize, #[comptime] plan: AttendBlueprint) -> bool {
        self.begin + t * plan.groups() + self.group < self.count
    }
}

#[cube]
impl OnlineSoftmax {
    /// The state before the first position.
    fn new(#[comptime] heads: usize, #[comptime] width: usize) -> OnlineSoftmax {
        let mut largest = Array::<f32>::new(heads);
        let mut sum = Array::<f32>::new(heads);
        let mut output = Array::<f32>::new(comptime!(heads * width));
        #[unroll]
        for h in 0..heads {
            largest[h] = -LARGEST_SCORE;
            sum[h] = 0.0f32;
        }
        #[unroll]
        for i in 0..comptime!(heads * width) {
            output[i] = 0.0f32;
        }
        OnlineSoftmax {
            largest,
            sum,
            output,
        }
    }

    /// Adds the loaded rows to the state of head `h`.
    fn update<E: Numeric, N: Size>(
        &mut self,
        query: &Array<f32>,
        rows: &LoadedRows<E, N>,
        #[comptime] h: usize,
        #[comptime] plan: AttendBlueprint,
    ) {
        let n = comptime!(plan.vector);
        let vectors = comptime!(plan.vectors);
        let at_once = comptime!(plan.rows_at_once);
        let width = comptime!(vectors * n);
        let mut logits = Array::<f32>::new(at_once);
        let mut top = self.largest[h];
        #[unroll]
        for t in 0..at_once {
            let mut dot = 0.0f32;
            #[unroll]
            for x in 0..vectors {
                #[unroll]
                for e in 0..n {
                    dot += query[h * width + x * n + e]
                        * element::<E, N>(rows.keys[t * vectors + x], e, plan.coded, plan.permutes);
                }
            }
            if comptime!(plan.coded) {
                dot *= rows.key_scales[t];
            }
            let valid = rows.is_valid(t, plan);
            logits[t] = select(valid, group_sum(dot, plan.lanes as u32), -LARGEST_SCORE);
            top = max(top, logits[t]);
        }
        let keep = (self.largest[h] - top).exp();
        let mut total = self.sum[h] * keep;
        #[unroll]
        for i in 0..width {
            self.output[h * width + i] *= keep;
        }
        #[unroll]
        for t in 0..at_once {
            let valid = rows.is_valid(t, plan);
            let weight = select(valid, (logits[t] - top).exp(), 0.0f32);
            total += weight;
            let mut factor = weight;
            if comptime!(plan.coded) {
                factor *= rows.value_scales[t];
            }
            #[unroll]
            for x in 0..vectors {
                #[unroll]
                for e in 0..n {
                    self.output[h * width + x * n + e] += factor
                        * element::<E, N>(
                            rows.values[t * vectors + x],
                            e,
                            plan.coded,
                            plan.permutes,
                        );
                }
            }
        }
        self.largest[h] = top;
        self.sum[h] = total;
    }

    /// Merges the states of all groups of a plane by shuffles.
    fn merge_in_plane(&mut self, #[comptime] width: usize, #[comptime] plan: AttendBlueprint) {
        #[unroll]
        for h in 0..comptime!(plan.heads) {
            #[unroll]
            for i in 0..comptime!(plan.groups_in_plane().ilog2()) {
                let distance = comptime!((plan.lanes << i) as u32);
                let other = plane_shuffle_xor(self.largest[h], distance);
                let top = max(self.largest[h], other);
                let keep = (self.largest[h] - top).exp();
                self.sum[h] *= keep;
                self.sum[h] += plane_shuffle_xor(self.sum[h], distance);
                #[unroll]
                for x in 0..width {
                    let value = self.output[h * width + x] * keep;
                    self.output[h * width + x] = value + plane_shuffle_xor(value, distance);
                }
                self.largest[h] = top;
            }
        }
    }

    /// Writes the state of this unit's set to shared memory.
    fn store(
        &self,
        result: &mut CubeSoftmax,
        #[comptime] n: usize,
        #[comptime] plan: AttendBlueprint,
    ) {
        let d = comptime!(plan.head_dim);
        let heads = comptime!(plan.heads);
        let lanes = comptime!(plan.lanes);
        let vectors = comptime!(plan.vectors);
        let width = comptime!(vectors * n);
        let of_set = comptime!(lanes * plan.groups_in_plane());
        let sets = comptime!(plan.sets());
        let unit = UNIT_POS as usize;
        let lane = unit % lanes;
        let set = unit / of_set;
        if unit % of_set < lanes {
            #[unroll]
            for h in 0..heads {
                if lane == 0 {
                    result.states[h * sets + set] = self.largest[h];
                    result.states[comptime!(sets * heads) + h * sets + set] = self.sum[h];
                }
                #[unroll]
                for x in 0..vectors {
                    #[unroll]
                    for e in 0..n {
                        let c = (x * lanes + lane) * n + e;
                        if c < d {
                            result.merge[(set * heads + h) * d + c] =
                                self.output[h * width + x * n + e];
                        }
                    }
                }
            }
        }
    }
}

/// Writes the queries that [`load_queries`](super::query::load_queries) loaded to `queries` [g, d],
/// divided by sqrt(d). They can be read after the next barrier.
#[cube]
pub(crate) fn store_queries(
    queries: &mut Shared<[f32]>,
    own: &Array<f32>,
    #[comptime] plan: AttendBlueprint,
) {
    let all = comptime!(plan.group * plan.head_dim);
    let units = comptime!(plan.units as usize);
    let scale = comptime!(1.0 / (plan.head_dim as f32).sqrt());
    #[unroll]
    for x in 0..comptime!(all.div_ceil(units)) {
        let i = x * units + UNIT_POS as usize;
        if i < all {
            queries[i] = own[x] * scale;
        }
    }
}

/// Attends to `positions`, at least one, with the heads from `head` on, `queries` [g, d] as
/// [`store_queries`] writes them. Ends with a barrier.
#[cube]
pub(crate) fn attend<E: Numeric, N: Size>(
    queries: &Shared<[f32]>,
    rows: &KvRows<E, N>,
    scales: &RowScales,
    positions: &Positions<'_>,
    head: usize,
    result: &mut CubeSoftmax,
    #[comptime] plan: AttendBlueprint,
) {
    let n = comptime!(plan.vector);
    let width = comptime!(plan.vectors * n);
    let query = load_query_part(queries, head, n, plan);
    let mut state = OnlineSoftmax::new(plan.heads, width);
    let group = UNIT_POS as usize / plan.lanes;
    let mut begin = 0usize;
    while begin < positions.count {
        let loaded = load_rows::<E, N>(rows, scales, positions, begin, group, plan);
        #[unroll]
        for h in 0..comptime!(plan.heads) {
            state.update::<E, N>(&query, &loaded, h, plan);
        }
        begin += comptime!(plan.rows_at_once * plan.groups());
    }
    state.merge_in_plane(width, plan);
    if comptime!(plan.heads < plan.group) {
        // Another unit may still read the result of the last pass.
        sync_cube();
    }
    state.store(result, n, plan);
    sync_cube();
    result.merge_sets(plan);
}

/// Returns this unit's part of the queries of a pass, [heads, width]. Heads past the last repeat
/// it.
#[cube]
fn load_query_part(
    queries: &Shared<[f32]>,
    head: usize,
    #[comptime] n: usize,
    #[comptime] plan: AttendBlueprint,
) -> Array<f32> {
    let d = comptime!(plan.head_dim);
    let lanes = comptime!(plan.lanes);
    let vectors = comptime!(plan.vectors);
    let width = comptime!(vectors * n);
    // The lanes hold more vectors than a row has.
    let padded = comptime!(lanes * vectors > d / n);
    let lane = UNIT_POS as usize % lanes;
    let mut query = Array::<f32>::new(comptime!(plan.heads * width));
    #[unroll]
    for h in 0..comptime!(plan.heads) {
        let whole = min(head + h, comptime!(plan.group - 1).runtime());
        #[unroll]
        for x in 0..vectors {
            #[unroll]
            for e in 0..n {
                let c = (x * lanes + lane) * n + e;
                // Constant without padding, so that neighbouring components are read together.
                let known = comptime!(!padded).runtime() || c < d;
                let mut value = 0.0f32;
                if known {
                    value = queries[whole * d + c];
                }
                query[h * width + x * n + e] = value;
            }
        }
    }
    query
}

/// Loads the rows of this unit's `group` from `begin` on. Past the last position it loads the last
/// one again, which is not valid.
#[cube]
fn load_rows<E: Numeric, N: Size>(
    rows: &KvRows<E, N>,
    scales: &RowScales,
    positions: &Positions<'_>,
    begin: usize,
    group: usize,
    #[comptime] plan: AttendBlueprint,
) -> LoadedRows<E, N> {
    let row = comptime!(plan.head_dim / plan.vector);
    let lanes = comptime!(plan.lanes);
    let vectors = comptime!(plan.vectors);
    let at_once = comptime!(plan.rows_at_once);
    let lane = UNIT_POS as usize % lanes;
    let mut keys = Array::<Vector<E, N>>::new(comptime!(at_once * vectors));
    let mut values = Array::<Vector<E, N>>::new(comptime!(at_once * vectors));
    let mut key_scales = Array::<f32>::new(at_once);
    let mut value_scales = Array::<f32>::new(at_once);
    #[unroll]
    for t in 0..at_once {
        let j = min(begin + t * plan.groups() + group, positions.count - 1);
        let position = if comptime!(positions.gathered) {
            positions.selected[j] as usize
        } else {
            positions.from + j
        };
        let at = (positions.base + position) * row;
        if comptime!(plan.coded) {
            key_scales[t] = scales.keys[positions.base + position];
            value_scales[t] = scales.values[positions.base + position];
        }
        #[unroll]
        for x in 0..vectors {
            let mut part = x * lanes + lane;
            if comptime!(lanes * vectors > row) {
                part = min(part, comptime!(row - 1).runtime());
            }
            keys[t * vectors + x] = rows.keys[at + part];
            values[t * vectors + x] = rows.values[at + part];
        }
    }
    LoadedRows::<E, N> {
        keys,
        values,
        key_scales,
        value_scales,
        begin,
        group,
        count: positions.count,
    }
}
