//! The operations around products with many rows: a norm before them, and biases, an activation
//! and the residual after them.

use cubecl::prelude::*;

use crate::backends::cube::parts::projection::{
    LinearShape, NormKind, NormWeights, ProjectionBlueprint, UpToThree, finish, load_addends,
    locate_tile, row_width,
};
use crate::backends::cube::parts::reduce::cube_sum;

/// The settings that a norm of rows is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NormRowsBlueprint {
    /// The norm.
    pub norm: NormKind,
    /// Units of a cube.
    pub units: u32,
    /// See [`reduce`](crate::backends::cube::parts::reduce).
    pub plane: u32,
}

/// Normalizes the rows of x [rows, in] to `out`, one cube for each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn norm_rows_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    norm: &NormWeights<Vector<E, N>>,
    out: &mut [Vector<E, N>],
    rows: u32,
    features: u32,
    epsilon: f32,
    #[comptime] plan: NormRowsBlueprint,
    #[define(E)] _type: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let n = N::value();
    let units = comptime!(plan.units as usize);
    let vectors = features as usize / n;
    let rounds = vectors.div_ceil(units);
    let count = f32::cast_from(features);
    let planes = comptime!((plan.units / plan.plane) as usize);
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let mut mean = 0.0f32;
    if comptime!(plan.norm == NormKind::Layer) {
        let mut sum = 0.0f32;
        for round in 0..rounds {
            let at = round * units + UNIT_POS as usize;
            if at < vectors {
                let vector = x[row * vectors + at];
                #[unroll]
                for e in 0..n {
                    sum += f32::cast_from(vector.extract(e));
                }
            }
        }
        mean = cube_sum(sum, &mut scratch, plan.units, plan.plane) / count;
    }
    let mut squares = 0.0f32;
    for round in 0..rounds {
        let at = round * units + UNIT_POS as usize;
        if at < vectors {
            let vector = x[row * vectors + at];
            #[unroll]
            for e in 0..n {
                let value = f32::cast_from(vector.extract(e)) - mean;
                squares += value * value;
            }
        }
    }
    let squares = cube_sum(squares, &mut scratch, plan.units, plan.plane);
    let factor = 1.0f32 / (squares / count + epsilon).sqrt();
    for round in 0..rounds {
        let at = round * units + UNIT_POS as usize;
        if at < vectors {
            let vector = Vector::<f32, N>::cast_from(x[row * vectors + at]);
            let scale = Vector::<f32, N>::cast_from(norm.scale[at]);
            let mut value =
                (vector - Vector::<f32, N>::new(mean)) * Vector::<f32, N>::new(factor) * scale;
            if comptime!(plan.norm == NormKind::Layer) {
                value += Vector::<f32, N>::cast_from(norm.shift[at]);
            }
            out[row * vectors + at] = Vector::cast_from(value);
        }
    }
}

/// Applies the epilogue to products: [rows, outputs of a weight] each, to `out` [rows, outputs].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn finish_rows_kernel<E: Float>(
    products: &UpToThree<E>,
    biases: &UpToThree<E>,
    residual: &[E],
    out: &mut [E],
    shape: &LinearShape,
    #[comptime] plan: ProjectionBlueprint,
    #[define(E)] _type: ElemType,
) {
    let width = row_width(shape, plan);
    let at = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    let row = at / width;
    if row < shape.rows as usize {
        let tile = locate_tile(shape, at % width, 1usize, plan);
        let here = row * tile.count + tile.first;
        let mut product = 0.0f32;
        let mut up = 0.0f32;
        if tile.weight == 0u32 {
            product = f32::cast_from(products.first[here]);
        }
        if comptime!(plan.gated) {
            up = f32::cast_from(products.second[here]);
        } else if comptime!(plan.weights > 1) {
            if tile.weight == 1u32 {
                product = f32::cast_from(products.second[here]);
            }
        }
        if comptime!(plan.weights > 2) {
            if tile.weight == 2u32 {
                product = f32::cast_from(products.third[here]);
            }
        }
        let addends = load_addends::<E>(biases, residual, &tile, tile.first, at, plan);
        out[at] = E::cast_from(finish(product, up, &addends, plan));
    }
}
