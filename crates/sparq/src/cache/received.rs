//! What a cache keeps for the methods that need more than keys and values: the attention that each position has received.

use burn::tensor::{Bool, DType, Tensor};

use super::{KvCache, lengths};
use crate::cache::buffers::SketchTensors;
use crate::ops::reference::write;
use crate::{Method, SparqError};

/// The attention that each position has received from all queries so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    /// [B, H_kv, n] in fp32 for the first n positions, of which the rest have received nothing yet; -inf where a position is evicted.
    sums: Option<Tensor<3>>,
    /// Whether a position has been evicted.
    evicted: bool,
}

impl Received {
    /// Bytes of the sums.
    pub(super) fn bytes(&self) -> usize {
        let sums = self.sums.as_ref();
        sums.map_or(0, |sums| sums.shape().num_elements() * sums.dtype().size())
    }

    /// Forgets all but the first `len` positions.
    pub(super) fn truncate(&mut self, len: usize) {
        let cut = |sums: Tensor<3>| match sums.dims()[2] > len {
            true => sums.slice_dim(2, 0..len),
            false => sums,
        };
        self.sums = self.sums.take().filter(|_| len > 0).map(cut);
        self.evicted &= len > 0;
    }
}

impl KvCache {
    /// From now on sums, for each position, the attention weights that it receives: what [`Method::reads_attention`] asks for. Costs the weights of every
    /// query of a prefill, chunk by chunk, and those of every step.
    ///
    /// Summed are the exact weights of a prefill and of every step but those of methods that read the sums, which add their own. A rollback keeps
    /// what the queries it takes back have added to the positions that stay. It is not for steps that are recorded
    /// ([`CapturedStep`](crate::CapturedStep)): these run as they are written.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the cache is not empty.
    pub fn record_attention(&mut self) -> Result<(), SparqError> {
        if !self.is_empty() {
            return Err(lengths(
                "cache whose attention is to be recorded",
                "an empty one".into(),
                format!("{} positions", self.len()),
            ));
        }
        self.received = Some(Received::default());
        Ok(())
    }

    /// The attention weights that each position has received, averaged over the query heads of a group and summed over the queries, [B, H_kv, S] in fp32;
    /// -inf where it is evicted. `None` where nothing is [recorded](Self::record_attention).
    pub fn received_attention(&self) -> Option<Tensor<3>> {
        let received = self.received.as_ref()?;
        let [batch, kv_heads, _, _] = self.tensors().k.dims();
        let device = self.tensors().k.device();
        let zeros = |len| Tensor::<3>::zeros([batch, kv_heads, len], (&device, DType::F32));
        Some(match &received.sums {
            None => zeros(self.len()),
            Some(sums) => match self.len() - sums.dims()[2] {
                0 => sums.clone(),
                more => Tensor::cat(vec![sums.clone(), zeros(more)], 2),
            },
        })
    }

    /// A cache with the same positions that holds what `method` reads and no more. Keys and values are shared until one of the two appends.
    ///
    /// So one prefill serves several methods. The key sketch is made from the keys, whatever sketch this cache has or has not; the attention
    /// received must have been [recorded](Self::record_attention) if the method reads it.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, FloatDType, Tensor};
    /// use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqConfig};
    ///
    /// let device = Device::default();
    /// let config = KvCacheConfig {
    ///     batch: 1, kv_heads: 2, head_dim: 32, capacity: 64, dtype: FloatDType::F32, sketch: None, window: None,
    /// };
    /// let mut prefilled = KvCache::new(&config, &device)?;
    /// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
    /// prefilled.append(random([1, 2, 100, 32]), random([1, 2, 100, 32]))?;
    /// for sketch in [Sketch::Full, Sketch::Bits4] {
    ///     let method = Method::from(SparqConfig::new(8, 16).with_sketch(sketch));
    ///     let mut cache = prefilled.for_method(&method)?;
    ///     assert_eq!(method.decode(random([1, 4, 1, 32]), &mut cache)?.dims(), [1, 4, 1, 32]);
    /// }
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::MissingAttention`] if the method reads the attention received and this cache has not recorded it.
    pub fn for_method(&self, method: &Method) -> Result<Self, SparqError> {
        let mut copy = self.clone();
        if method.reads_attention() {
            copy.check_records_attention(method.name())?;
        } else {
            copy.check_whole(method.name())?;
            copy.received = None;
        }
        if method.sketch() != self.config.sketch {
            copy.config.sketch = method.sketch();
            copy.ranged_at.fill(0);
            let mut tensors = copy.take();
            tensors.sketch = SketchTensors::of_keys(&tensors.k, method.sketch());
            // Without a sketch, nothing takes from the sum what has left a window.
            if self.config.window.is_some() && !self.is_empty() {
                tensors.v_sum = write::sum_values(&tensors.v, &copy.attended());
            }
            copy.tensors = Some(tensors);
        }
        Ok(copy)
    }

    pub(crate) fn records_attention(&self) -> bool {
        self.received.is_some()
    }

    /// Adds weights [B, H_kv, S] to what the positions have received.
    pub(crate) fn add_received(&mut self, weights: Tensor<3>) {
        let sums = self.received_attention();
        if let (Some(received), Some(sums)) = (&mut self.received, sums) {
            received.sums = Some(sums + weights);
        }
    }

    /// Marks positions, [B, H_kv, S], as evicted for good.
    pub(crate) fn evict(&mut self, gone: Tensor<3, Bool>) {
        let sums = self.received_attention();
        if let (Some(received), Some(sums)) = (&mut self.received, sums) {
            received.sums = Some(sums.mask_fill(gone, f32::NEG_INFINITY));
            received.evicted = true;
        }
    }

    pub(crate) fn check_records_attention(&self, method: &'static str) -> Result<(), SparqError> {
        match self.records_attention() {
            true => Ok(()),
            false => Err(SparqError::MissingAttention { method }),
        }
    }

    /// Checks that no method has evicted positions, which would have to be read.
    pub(crate) fn check_whole(&self, reader: &'static str) -> Result<(), SparqError> {
        if self
            .received
            .as_ref()
            .is_none_or(|received| !received.evicted)
        {
            return Ok(());
        }
        Err(lengths(
            "cache",
            format!("every position still there, for {reader}"),
            "some evicted by an earlier step".into(),
        ))
    }

    /// Checks that what is launched now will not be replayed.
    pub(crate) fn check_not_recorded(&self, what: &'static str) -> Result<(), SparqError> {
        match self.recorded {
            true => Err(SparqError::NotCapturable { what }),
            false => Ok(()),
        }
    }
}
