//! Launches of appends, of taking them back, and of the ranges of a sketch.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::kernels::append_rope::{
    AppendBlueprint, CacheRowsLaunch, SketchColumnsLaunch, append_rope_kernel,
};
use super::kernels::append_rows::{self, NewTokensLaunch, add_sums_kernel, append_rows_kernel};
use super::kernels::roll_back::roll_back_kernel;
use super::kernels::sketch_ranges::{
    self, RangesBlueprint, SequenceKeysLaunch, channel_extremes_kernel, encode_kernel,
};
use super::launch::{Launcher, grid};
use super::parts::codes::ChannelRangesLaunch;
use crate::ops::{CacheBuffers, RowBuffers, SketchBuffers, Spans};

/// The most units of the cubes that append one token.
const TOKEN_UNITS: usize = 1024;
/// Units of the cubes that append a tile of tokens.
const TILE_UNITS: u32 = 128;
/// Units of the cubes that add the sums of tiles.
const SUM_UNITS: u32 = 256;
/// Units of the cubes that find ranges and encode keys.
const RANGE_UNITS: u32 = 128;
/// Positions that are worth a cube when extremes are found, and the most cubes of a head: each
/// cube that encodes reads the extremes of all.
const POSITIONS_OF_PART: usize = 256;
const MOST_PARTS: usize = 64;

/// The buffers of tokens that are appended to every sequence.
pub(super) struct Tokens<'a> {
    /// The queries, and a buffer for the rotated ones.
    pub queries: Option<(&'a CubeTensor, &'a CubeTensor)>,
    pub k: &'a CubeTensor,
    pub v: &'a CubeTensor,
    /// The table of angles; without one nothing is rotated.
    pub table: Option<&'a CubeTensor>,
}

impl Launcher {
    /// Rotates and appends tokens to every sequence, and returns the rotated queries. `encode`
    /// writes the codes of a quantised sketch.
    pub fn prepare(
        &self,
        [q, k, v]: [&CubeTensor; 3],
        table: Option<&CubeTensor>,
        cache: &CacheBuffers<CubeBackend>,
        encode: bool,
    ) -> CubeTensor {
        let rotated = self.empty(q.shape().dims::<4>(), q.dtype);
        let tokens = Tokens {
            queries: Some((q, &rotated)),
            k,
            v,
            table,
        };
        self.append(&tokens, cache, encode);
        rotated
    }

    /// Appends tokens to every sequence; see [`append_rope_kernel`] and [`append_rows_kernel`].
    /// `encode` writes the codes of a quantised sketch.
    pub fn append(&self, tokens: &Tokens<'_>, cache: &CacheBuffers<CubeBackend>, encode: bool) {
        let sizes = cache.k.sizes(cache.k.elements().shape()[1]);
        let unused = |dtype| self.unused(dtype);
        let (mut full, mut bits) = (None, 0);
        let mut quantised = None;
        match &cache.sketch {
            SketchBuffers::Full(kt) => full = Some(kt.clone()),
            SketchBuffers::Codes {
                bits: width,
                codes,
                zero_point,
                scale,
            } if encode => {
                bits = *width;
                quantised = Some((codes.clone(), zero_point.clone(), scale.clone()));
            }
            _ => {}
        }
        let plan = AppendBlueprint {
            head_dim: sizes.head_dim,
            group: (tokens.queries).map_or(0, |(q, _)| q.shape()[1] / sizes.kv_heads),
            pairs: tokens.table.map_or(0, |table| table.shape()[1] / 2),
            full: full.is_some(),
            bits,
            coded: cache.k.is_coded(),
            plane: self.info.plane,
        };
        let full = full.unwrap_or_else(|| unused(DType::F32));
        let elements = cache.k.elements();
        let (codes, zero_point, scale) = quantised.unwrap_or_else(|| {
            let [zero_point, scale] = [DType::F32; 2].map(unused);
            (unused(DType::U32), zero_point, scale)
        });
        let (q, rotated) = match tokens.queries {
            Some((q, rotated)) => (q.clone(), rotated.clone()),
            None => (tokens.k.clone(), unused(tokens.k.dtype)),
        };
        let table = tokens.table.cloned().unwrap_or_else(|| unused(DType::F32));
        let address_type = [elements, &table, &q, tokens.k]
            .map(CubeTensor::required_address_type)
            .into_iter()
            .fold(AddressType::U32, AddressType::max);
        let types = [tokens.k.dtype, elements.dtype, full.dtype].map(dtype_to_storage_type);
        let ranges =
            ChannelRangesLaunch::new(zero_point.into_buffer_arg(), scale.into_buffer_arg());
        let len = tokens.k.shape()[2];
        if len == 1 {
            // A unit for each component of the queries and of the key.
            let components = (plan.group + 1) * plan.head_dim;
            let units = components.next_power_of_two().min(TOKEN_UNITS) as u32;
            // SAFETY: the kernel checks the number of the cube, of each component and the room.
            unsafe {
                append_rope_kernel::launch_unchecked(
                    &self.client,
                    grid(sizes.batch_heads()),
                    CubeDim::new_1d(self.info.units(units)),
                    address_type,
                    q.into_tensor_arg(),
                    tokens.k.clone().into_tensor_arg(),
                    tokens.v.clone().into_tensor_arg(),
                    table.into_tensor_arg(),
                    rotated.into_buffer_arg(),
                    rows(cache),
                    self.row_scales(cache),
                    columns(full, codes),
                    ranges,
                    cache.spans.clone().into_buffer_arg(),
                    sizes.batch_shape(),
                    sizes.capacity as u32,
                    plan,
                    types,
                );
            }
            return;
        }
        // Wherever the first token lies in its tile.
        let tiles = (len - 1).div_ceil(append_rows::TILE) + 1;
        let sums = self.empty([sizes.batch_heads(), tiles, sizes.head_dim], DType::F32);
        let new = NewTokensLaunch::new(len as u32, tiles as u32, sizes.capacity as u32);
        let sum_units = self.info.units(SUM_UNITS);
        // SAFETY: the kernels check the number of the cube, of each component and the room.
        unsafe {
            append_rows_kernel::launch_unchecked(
                &self.client,
                grid(sizes.batch_heads() * tiles),
                CubeDim::new_1d(self.info.units(TILE_UNITS)),
                address_type,
                q.into_tensor_arg(),
                tokens.k.clone().into_tensor_arg(),
                tokens.v.clone().into_tensor_arg(),
                table.into_tensor_arg(),
                rotated.into_buffer_arg(),
                rows(cache),
                self.row_scales(cache),
                columns(full, codes),
                ranges,
                sums.clone().into_buffer_arg(),
                cache.spans.clone().into_buffer_arg(),
                sizes.batch_shape(),
                new,
                plan,
                types,
            );
            add_sums_kernel::launch_unchecked(
                &self.client,
                grid(sizes.batch_heads()),
                CubeDim::new_1d(sum_units),
                sums.into_buffer_arg(),
                cache.v_sum.clone().into_buffer_arg(),
                sizes.batch_heads() as u32,
                tiles as u32,
                sizes.head_dim,
                sum_units as usize,
            );
        }
    }

    /// Takes back appends; see [`roll_back_kernel`]. `sum` is the sum of V at the mark.
    pub fn roll_back(
        &self,
        cache: &CacheBuffers<CubeBackend>,
        sum: &CubeTensor,
        moves: &CubeTensor,
    ) {
        let values = cache.v.elements();
        let sizes = cache.v.sizes(values.shape()[1]);
        let scales = match &cache.v {
            RowBuffers::Float(_) => self.unused(DType::F32),
            RowBuffers::Int8 { scale, .. } => scale.clone(),
        };
        // SAFETY: the kernel checks the number of the cube and of each component, and reads
        // positions before the new end only.
        unsafe {
            roll_back_kernel::launch_unchecked(
                &self.client,
                grid(sizes.batch_heads()),
                CubeDim::new_1d(self.info.units(TILE_UNITS)),
                values.required_address_type(),
                values.clone().into_buffer_arg(),
                scales.into_buffer_arg(),
                cache.v_sum.clone().into_buffer_arg(),
                sum.clone().into_buffer_arg(),
                cache.spans.clone().into_buffer_arg(),
                moves.clone().into_buffer_arg(),
                sizes.batch_shape(),
                sizes.capacity as u32,
                sizes.head_dim,
                cache.v.is_coded(),
                dtype_to_storage_type(values.dtype),
            );
        }
    }

    /// Sets the ranges of one sequence from its valid positions, and writes all its codes; see
    /// [`channel_extremes_kernel`] and [`encode_kernel`]. Other sketches stay as they are.
    pub fn range_sketch(&self, cache: &CacheBuffers<CubeBackend>, spans: &Spans, sequence: usize) {
        let SketchBuffers::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } = &cache.sketch
        else {
            return;
        };
        let sizes = cache.k.sizes(cache.k.elements().shape()[1]);
        let (kv_heads, end) = (sizes.kv_heads, spans.end[sequence]);
        let start = spans.start[sequence].min(end);
        let parts = (end - start)
            .div_ceil(POSITIONS_OF_PART)
            .clamp(1, MOST_PARTS);
        let extremes = self.empty([kv_heads, parts, 2, sizes.head_dim], DType::F32);
        let units = self.info.units(RANGE_UNITS);
        let plan = RangesBlueprint {
            head_dim: sizes.head_dim,
            bits: *bits,
            coded: cache.k.is_coded(),
            units: units as usize,
        };
        let keys = || {
            SequenceKeysLaunch::new(
                kv_heads as u32,
                (sequence * kv_heads) as u32,
                sizes.capacity as u32,
                start as u32,
                end as u32,
                parts as u32,
            )
        };
        let tiles = end.div_ceil(sketch_ranges::TILE);
        let rows = cache.k.elements();
        let dtype = dtype_to_storage_type(rows.dtype);
        let scales = || match &cache.k {
            RowBuffers::Float(_) => self.unused(DType::F32),
            RowBuffers::Int8 { scale, .. } => scale.clone(),
        };
        // SAFETY: the kernels check the number of the cube and of each channel, and read positions
        // before the end only.
        unsafe {
            channel_extremes_kernel::launch_unchecked(
                &self.client,
                grid(kv_heads * parts),
                CubeDim::new_1d(units),
                rows.required_address_type(),
                rows.clone().into_buffer_arg(),
                scales().into_buffer_arg(),
                extremes.clone().into_buffer_arg(),
                keys(),
                plan,
                dtype,
            );
            encode_kernel::launch_unchecked(
                &self.client,
                grid(kv_heads * tiles),
                CubeDim::new_1d(units),
                rows.required_address_type(),
                rows.clone().into_buffer_arg(),
                scales().into_buffer_arg(),
                extremes.into_buffer_arg(),
                ChannelRangesLaunch::new(
                    zero_point.clone().into_buffer_arg(),
                    scale.clone().into_buffer_arg(),
                ),
                codes.clone().into_buffer_arg(),
                keys(),
                tiles as u32,
                plan,
                dtype,
            );
        }
    }
}

fn rows<E: Numeric>(cache: &CacheBuffers<CubeBackend>) -> CacheRowsLaunch<E> {
    CacheRowsLaunch::new(
        cache.k.elements().clone().into_buffer_arg(),
        cache.v.elements().clone().into_buffer_arg(),
        cache.v_sum.clone().into_buffer_arg(),
    )
}

fn columns<F: Float>(full: CubeTensor, codes: CubeTensor) -> SketchColumnsLaunch<F> {
    SketchColumnsLaunch::new(full.into_buffer_arg(), codes.into_buffer_arg())
}
