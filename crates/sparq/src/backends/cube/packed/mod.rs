//! Linear layers of [packed weights](crate::ops::blocks), and their storage.
//!
//! [`store`] lays the blocks out anew. Up to [`FEW_ROWS`] rows are multiplied by the codes as they
//! are: one launch with matrix units ([`linear_blocks`](super::kernels::linear_blocks)), after
//! another that packs x if its rows are many, or
//! [without](super::kernels::linear_blocks_plain). More rows are products with floats, of which
//! those of one operation exist at a time.

mod products;
mod restore;

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::products::{Packed, multiply};
use super::kernels::dequantize_blocks::dequantize_blocks_kernel;
use super::kernels::store_blocks::store_blocks_kernel;
use super::launch::{Launcher, grid};
use super::linear::{self, Buffers, FEW_ROWS, Layers};
use super::parts::blocks::{BlockLayout, GROUP, MEMBERS, ROWS, RUN, tiles_of_row};
use crate::ops::{
    Activation, BiasBuffers, BlockFormat, LinearBuffers, NormBuffers, ProjectionBuffers,
    ResidualBuffers, WeightBuffers,
};

/// Units of the cubes that move or dequantise blocks.
const UNITS: u32 = 256;

/// See [`SparqBackend::store_blocks`](crate::ops::SparqBackend::store_blocks).
pub(super) fn store(
    blocks: &IntTensor<Buffers>,
    format: BlockFormat,
    dims: [usize; 2],
) -> CubeTensor {
    let layout = BlockLayout::new(format);
    let [outputs, features] = dims;
    let launcher = Launcher::new(blocks);
    let words = outputs.div_ceil(ROWS) * tiles_of_row(features) * layout.words();
    let tiles = launcher.empty([words], DType::U32);
    let units = launcher.info.units(UNITS);
    unsafe {
        store_blocks_kernel::launch_unchecked(
            &launcher.client,
            grid(words.div_ceil(units as usize)),
            CubeDim::new_1d(units),
            blocks
                .required_address_type()
                .max(tiles.required_address_type()),
            into_contiguous(blocks.clone()).into_buffer_arg(),
            tiles.clone().into_buffer_arg(),
            outputs as u32,
            features as u32,
            layout,
        );
    }
    tiles
}

/// See [`SparqBackend::restore_blocks`](crate::ops::SparqBackend::restore_blocks).
pub(super) fn restore(
    tiles: &IntTensor<Buffers>,
    format: BlockFormat,
    dims: [usize; 2],
) -> CubeTensor {
    restore::restore(tiles, BlockLayout::new(format), dims)
}

/// Returns rows of a matrix in `dtype`: those of `indices`, or all. `None` if the kernel does not
/// cover the type.
pub(super) fn dequantize(
    tiles: &IntTensor<Buffers>,
    indices: Option<&IntTensor<Buffers>>,
    format: BlockFormat,
    dims: [usize; 2],
    dtype: DType,
) -> Option<CubeTensor> {
    if !linear::known(dtype) {
        return None;
    }
    let launcher = Launcher::new(tiles);
    let [outputs, features] = dims;
    let rows = indices.map_or(outputs, |indices| indices.shape()[0]);
    let out = launcher.empty([rows, features], dtype);
    let units = launcher.info.units(UNITS);
    let parts = rows * (features / GROUP) * MEMBERS;
    let all = indices.map_or_else(|| tiles.clone(), |indices| into_contiguous(indices.clone()));
    if parts > 0 {
        unsafe {
            dequantize_blocks_kernel::launch_unchecked(
                &launcher.client,
                grid(parts.div_ceil(units as usize)),
                CubeDim::new_1d(units),
                tiles
                    .required_address_type()
                    .max(out.required_address_type()),
                RUN,
                tiles.clone().into_buffer_arg(),
                all.clone().into_buffer_arg(),
                out.clone().into_buffer_arg(),
                rows as u32,
                outputs as u32,
                features as u32,
                indices.is_some(),
                BlockLayout::new(format),
                [dtype, all.dtype].map(dtype_to_storage_type),
            );
        }
    }
    Some(out)
}

/// See [`SparqBackend::decode_linear`](crate::ops::SparqBackend::decode_linear), with at least one
/// packed weight. `None` if the kernels do not cover the types.
pub(super) fn decode_linear(
    x: &FloatTensor<Buffers>,
    norm: &NormBuffers<Buffers>,
    projections: &ProjectionBuffers<Buffers>,
    residual: &ResidualBuffers<Buffers>,
) -> Option<CubeTensor> {
    let packed = match x.shape()[0] <= FEW_ROWS {
        true => Packed::new(x, norm, projections, residual)?,
        false => None,
    };
    match (packed, projections) {
        (
            Some(packed),
            ProjectionBuffers::Gated {
                gate,
                up,
                activation,
            },
        ) if packed.formats_differ() => gate_apart(x, norm, [gate, up], *activation, residual),
        (Some(packed), _) => Some(multiply(packed)),
        (None, _) => linear::decode_linear(x, norm, &floats(projections, x.dtype)?, residual),
    }
}

/// Computes a gate and the layer beside it in operations of their own.
fn gate_apart(
    x: &CubeTensor,
    norm: &NormBuffers<Buffers>,
    [gate, up]: [&LinearBuffers<Buffers>; 2],
    activation: Activation,
    residual: &ResidualBuffers<Buffers>,
) -> Option<CubeTensor> {
    use burn::backend::ops::FloatTensorOps;
    let none = ResidualBuffers::None;
    let gate = ProjectionBuffers::Activated {
        up: clone(gate),
        activation,
    };
    let gate = decode_linear(x, norm, &gate, &none)?;
    let up = decode_linear(x, norm, &ProjectionBuffers::One(clone(up)), &none)?;
    let product = CubeBackend::float_mul(gate, up);
    Some(match linear::residual_of(residual) {
        Some(residual) => CubeBackend::float_add(product, residual),
        None => product,
    })
}

fn clone(layer: &LinearBuffers<Buffers>) -> LinearBuffers<Buffers> {
    LinearBuffers {
        weight: match &layer.weight {
            WeightBuffers::Float(weight) => WeightBuffers::Float(weight.clone()),
            WeightBuffers::Packed {
                blocks,
                format,
                dims,
            } => WeightBuffers::Packed {
                blocks: blocks.clone(),
                format: *format,
                dims: *dims,
            },
        },
        bias: match &layer.bias {
            BiasBuffers::None => BiasBuffers::None,
            BiasBuffers::Add(bias) => BiasBuffers::Add(bias.clone()),
        },
    }
}

/// Returns the layers with all weights as floats.
fn floats(
    projections: &ProjectionBuffers<Buffers>,
    dtype: DType,
) -> Option<ProjectionBuffers<Buffers>> {
    let mut layers = Layers::new(projections).layers.into_iter();
    let mut next = || {
        let layer = layers.next()?;
        let mut floats = clone(layer);
        if let WeightBuffers::Packed {
            blocks,
            format,
            dims,
        } = &layer.weight
        {
            let weight = dequantize(blocks, None, *format, *dims, dtype)?;
            floats.weight = WeightBuffers::Float(weight);
        }
        Some(floats)
    };
    Some(match projections {
        ProjectionBuffers::One(_) => ProjectionBuffers::One(next()?),
        ProjectionBuffers::Two(..) => ProjectionBuffers::Two(next()?, next()?),
        ProjectionBuffers::Three(..) => ProjectionBuffers::Three(next()?, next()?, next()?),
        ProjectionBuffers::Gated { activation, .. } => ProjectionBuffers::Gated {
            gate: next()?,
            up: next()?,
            activation: *activation,
        },
        ProjectionBuffers::Activated { activation, .. } => ProjectionBuffers::Activated {
            up: next()?,
            activation: *activation,
        },
    })
}
