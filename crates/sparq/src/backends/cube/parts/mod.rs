//! Device functions that the kernels are made of, one file for each part of the algorithm.

pub(crate) mod batch_head;
pub(crate) mod blocks;
pub(crate) mod codes;
pub(crate) mod cp_async;
pub(crate) mod fragments;
pub(crate) mod group_softmax;
pub(crate) mod half_rows;
pub(crate) mod histogram;
pub(crate) mod loads;
pub(crate) mod logits;
pub(crate) mod mma;
pub(crate) mod online_softmax;
pub(crate) mod projection;
pub(crate) mod query;
pub(crate) mod query_rows;
pub(crate) mod reduce;
pub(crate) mod rotary;
pub(crate) mod row_codes;
pub(crate) mod score;
pub(crate) mod split_attention;
pub(crate) mod stage_ring;
pub(crate) mod staged_rows;
pub(crate) mod topk;
pub(crate) mod topk_memory;
pub(crate) mod warpgroup;
