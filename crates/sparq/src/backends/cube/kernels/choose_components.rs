//! Selects the components of all batch heads in a launch of its own.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::query::{ChosenComponents, QueryBlueprint, choose_components};

/// Selects the components of every batch head, one cube for each.
///
/// q [B, H, 1, d]; `scale` [B, H_kv, d] is that of the sketch's codes. Also sets `arrivals`
/// [1 + B H_kv] to 0: cubes that wait for each other count in it.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn choose_components_kernel<Q: Float>(
    q: &Tensor<Q>,
    scale: &[f32],
    chosen: &mut ChosenComponents,
    arrivals: &mut [u32],
    shape: &BatchShape,
    #[comptime] plan: QueryBlueprint,
    #[define(Q)] _type: ElemType,
) {
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);
    let batch_head = CUBE_POS;
    if batch_head >= shape.count() {
        terminate!();
    }
    let sequence = batch_head / shape.kv_heads as usize;
    let kv_head = batch_head % shape.kv_heads as usize;
    let query = choose_components::<Q>(q, scale, sequence, kv_head, batch_head, plan);
    for round in 0..rank.div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < rank {
            chosen.components[batch_head * rank + i] = query.selected[i];
        }
    }
    let all = comptime!(rank * plan.heads());
    for round in 0..all.div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < all {
            chosen.weights[batch_head * all + i] = query.weights[i];
        }
    }
    if UNIT_POS == 0 {
        arrivals[batch_head + 1] = 0u32;
        if batch_head == 0 {
            arrivals[0] = 0u32;
        }
    }
}
