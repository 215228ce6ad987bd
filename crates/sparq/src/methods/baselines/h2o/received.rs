//! The attention that each position of a cache has received.

use burn::tensor::{Bool, DType, Device, Tensor};

use crate::methods::MethodState;
use crate::{KvCache, SparqError};

/// The attention that each position has received from all queries so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    /// [B, H_kv, n] in fp32 for the first n positions; -inf where a position is evicted.
    ///
    /// Later positions have received nothing yet.
    sums: Option<Tensor<3>>,
    /// Whether a position has been evicted.
    evicted: bool,
}

impl Received {
    /// The sums of all positions, [B, H_kv, S].
    fn padded(&self, [batch, kv_heads, len]: [usize; 3], device: &Device) -> Tensor<3> {
        let zeros = |len| Tensor::<3>::zeros([batch, kv_heads, len], (device, DType::F32));
        match &self.sums {
            None => zeros(len),
            Some(sums) => match len - sums.dims()[2] {
                0 => sums.clone(),
                more => Tensor::cat(vec![sums.clone(), zeros(more)], 2),
            },
        }
    }

    /// Evicts the positions of a mask [B, H_kv, S].
    pub(super) fn evict(&mut self, gone: Tensor<3, Bool>) {
        let sums = self.padded(gone.dims(), &gone.device());
        self.sums = Some(sums.mask_fill(gone, f32::NEG_INFINITY));
        self.evicted = true;
    }
}

impl MethodState for Received {
    fn duplicate(&self) -> Box<dyn MethodState> {
        Box::new(self.clone())
    }

    fn truncate(&mut self, len: usize) {
        let cut = |sums: Tensor<3>| match sums.dims()[2] > len {
            true => sums.slice_dim(2, 0..len),
            false => sums,
        };
        self.sums = self.sums.take().filter(|_| len > 0).map(cut);
        self.evicted &= len > 0;
    }

    fn bytes(&self) -> usize {
        let sums = self.sums.as_ref();
        sums.map_or(0, |sums| sums.shape().num_elements() * sums.dtype().size())
    }

    fn observes_attention(&self) -> bool {
        true
    }

    fn observe_attention(&mut self, weights: Tensor<3>) {
        let sums = self.padded(weights.dims(), &weights.device());
        self.sums = Some(sums + weights);
    }

    fn is_whole(&self) -> bool {
        !self.evicted
    }
}

/// The record of received attention, for methods that
/// [read it](crate::methods::Strategy::reads_attention).
impl KvCache {
    /// Starts to record the attention that each position receives.
    ///
    /// The cache then sums the exact weights of every prefill and of every step. A method that
    /// reads the sums adds its own weights instead. Recording costs the weights of every query of a
    /// prefill, chunk by chunk, and those of every step. A rollback keeps what the removed queries
    /// have added to the remaining positions. A [`CapturedStep`](crate::CapturedStep) on such a
    /// cache runs uncaptured.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the cache is not empty.
    pub fn record_attention(&mut self) -> Result<(), SparqError> {
        if !self.is_empty() {
            let found = format!("{} positions", self.len());
            return Err(SparqError::value(
                "cache that is to record attention",
                "an empty one",
                found,
            ));
        }
        self.states_mut().set(Received::default());
        Ok(())
    }

    /// The attention weights that each position has received, [B, H_kv, S] in fp32.
    ///
    /// They are averaged over the query heads of a group and summed over the queries; -inf where a
    /// position is evicted. `None` if the cache does not [record](Self::record_attention) them.
    pub fn received_attention(&self) -> Option<Tensor<3>> {
        let received = self.states().get::<Received>()?;
        let [batch, kv_heads, _, _] = self.tensors().k.dims();
        let shape = [batch, kv_heads, self.len()];
        Some(received.padded(shape, &self.tensors().k.device()))
    }
}
