//! The batch head that a cube works on, and the span of its sequence.

use cubecl::prelude::*;

/// The number of sequences, and the KV heads of each.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct BatchShape {
    /// B.
    pub batch: u32,
    /// H_kv.
    pub kv_heads: u32,
}

#[cube]
impl BatchShape {
    /// The number of batch heads.
    pub fn count(&self) -> usize {
        (self.batch * self.kv_heads) as usize
    }
}

/// One KV head of one sequence.
#[derive(CubeType)]
pub(crate) struct BatchHead {
    /// Its number among all batch heads.
    pub index: usize,
    /// Its sequence's number in the batch.
    pub sequence: usize,
    /// Its number among the KV heads of its sequence.
    pub kv_head: usize,
    /// The first valid position.
    pub start: usize,
    /// One past the last valid position; at least `start`.
    pub end: usize,
}

/// Reads the span of batch head `index`; [`CacheTensors`](crate::ops::CacheTensors) has the layout
/// of `spans`.
#[cube]
pub(crate) fn locate(spans: &[u32], index: usize, shape: &BatchShape) -> BatchHead {
    let sequence = index / shape.kv_heads as usize;
    let start = spans[sequence] as usize;
    BatchHead {
        index,
        sequence,
        kv_head: index % shape.kv_heads as usize,
        start,
        end: max(spans[shape.batch as usize + sequence] as usize, start),
    }
}
