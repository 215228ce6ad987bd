//! Positions that layers share: what a step selects, and what another layer's step reuses.

use burn::tensor::{Int, Tensor};

use super::KvCache;

/// Positions of another layer for the next step.
#[derive(Clone, Debug)]
pub(crate) struct Reused {
    /// [B, N, k].
    pub positions: Tensor<3, Int>,
    /// `[H_kv]`, in u32.
    pub heads: Tensor<1, Int>,
}

impl KvCache {
    /// Sets whether to keep the positions that SparQ selects in each step. False at first.
    pub fn keep_selection(&mut self, keep: bool) {
        self.keeps_selection = keep;
        self.selection = None;
    }

    /// Takes the positions that the last step selected, [B, H_kv, k], if it was a sparse step of
    /// SparQ and they were to be [kept](Self::keep_selection).
    ///
    /// They are on the device, and -1 fills up the list of a sequence with fewer than k positions.
    pub fn take_selection(&mut self) -> Option<Tensor<3, Int>> {
        self.selection.take()
    }

    /// Makes the next step attend to given positions, with exact attention and whatever its method;
    /// with `None` its method chooses again.
    ///
    /// The positions [B, N, k] are those that a layer with the same sequences and the same sliding
    /// window has [selected](Self::take_selection) in the same step. The heads `[H_kv]` in u32 name
    /// the one of its N KV heads whose positions each KV head takes. The cache needs no sketch. The
    /// weights of the positions sum to 1: without approximate scores there is no alpha, and so no
    /// mean value.
    ///
    /// ```
    /// use burn::tensor::{DType, Device, Distribution, Int, Tensor};
    /// use sparq::{KvCacheConfig, Method, SparqConfig};
    ///
    /// let device = Device::default();
    /// let method = Method::from(SparqConfig::new(8, 16));
    /// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
    /// let config = KvCacheConfig::new(1, 2, 32);
    /// let mut anchor = config.with_sketch(method.sketch()).init(&device)?;
    /// let mut other = config.init(&device)?;
    /// for cache in [&mut anchor, &mut other] {
    ///     cache.append(random([1, 2, 100, 32]), random([1, 2, 100, 32]))?;
    /// }
    /// anchor.keep_selection(true);
    /// method.decode(random([1, 4, 1, 32]), &mut anchor)?;
    /// let positions = anchor.take_selection().unwrap();
    /// assert_eq!(positions.dims(), [1, 2, 16]);
    ///
    /// // The heads of the other layer take the positions of the heads 1 and 0.
    /// let heads = Tensor::<1, Int>::from_data([1u32, 0], (&device, DType::U32));
    /// other.reuse(Some((positions, heads)));
    /// let y = Method::DENSE.decode(random([1, 4, 1, 32]), &mut other)?;
    /// assert_eq!(y.dims(), [1, 4, 1, 32]);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    pub fn reuse(&mut self, of: Option<(Tensor<3, Int>, Tensor<1, Int>)>) {
        self.reused = of.map(|(positions, heads)| Reused { positions, heads });
    }

    pub(crate) fn keeps_selection(&self) -> bool {
        self.keeps_selection
    }

    pub(crate) fn note_selection(&mut self, positions: Tensor<3, Int>) {
        self.selection = Some(positions);
    }

    pub(crate) fn take_reused(&mut self) -> Option<Reused> {
        self.reused.take()
    }
}
