//! The kernels, one file for each launch.

pub(crate) mod append_rope;
pub(crate) mod append_rows;
pub(crate) mod argmax;
pub(crate) mod attend_positions;
pub(crate) mod choose_components;
pub(crate) mod dense;
pub(crate) mod dequantize_blocks;
pub(crate) mod dequantize_rows;
pub(crate) mod linear_blocks;
pub(crate) mod linear_blocks_plain;
pub(crate) mod linear_mma;
pub(crate) mod linear_rows;
pub(crate) mod linear_tiles;
pub(crate) mod linear_wgmma;
pub(crate) mod pack_rows;
pub(crate) mod prefill;
pub(crate) mod prefill_plain;
pub(crate) mod prefill_wgmma;
pub(crate) mod roll_back;
pub(crate) mod rows;
pub(crate) mod score_tiles;
pub(crate) mod select_attend;
pub(crate) mod sketch_ranges;
pub(crate) mod softmax_heads;
pub(crate) mod store_blocks;
