//! Decode steps of sequences that have a cache each.

use burn::tensor::Tensor;

use super::SparqAttention;
use crate::ops::Norm;
use crate::{KvCache, Method, SparqError};

impl SparqAttention {
    /// Takes one decode step of B sequences with a cache each, x [B, 1, D] -> [B, 1, D].
    ///
    /// The projections multiply all rows at once. Row b of x is the token of `sequences[b]`: its
    /// cache, which holds one sequence, and its method. So sequences of different lengths and
    /// methods share the reading of the weights, and join and leave from one step to the next.
    /// `norm` is that of x, and `residual` [B, 1, D] is added to the result.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use sparq::ops::Norm;
    /// use sparq::{Method, RotaryConfig, SparqAttentionConfig, SparqConfig};
    ///
    /// let device = Device::default();
    /// let attention = SparqAttentionConfig::new(64, 4, 2, 16)
    ///     .with_rotary(Some(RotaryConfig::new(16)))
    ///     .init(&device)?;
    /// let random = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, &device);
    ///
    /// // A sequence of 40 positions with SparQ and one of 7 with dense attention.
    /// let (sparq, dense) = (Method::from(SparqConfig::new(4, 12)), Method::DENSE);
    /// let mut long = attention.new_cache(1, 64, &sparq)?;
    /// let mut short = attention.new_cache(1, 64, &dense)?;
    /// attention.forward(random([1, 40, 64]), Some(&mut long))?;
    /// attention.forward(random([1, 7, 64]), Some(&mut short))?;
    ///
    /// let sequences = &mut [(&mut long, &sparq), (&mut short, &dense)];
    /// let y = attention.decode_each(random([2, 1, 64]), Norm::None, None, sequences)?;
    /// assert_eq!((y.dims(), long.len(), short.len()), ([2, 1, 64], 41, 8));
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// As [`SparqAttention::decode`], and [`SparqError::Shape`] if there is not one cache of one
    /// sequence per row. All caches are checked before one is changed.
    pub fn decode_each(
        &self,
        x: Tensor<3>,
        norm: Norm,
        residual: Option<Tensor<3>>,
        sequences: &mut [(&mut KvCache, &Method)],
    ) -> Result<Tensor<3>, SparqError> {
        self.check(&x, [sequences.len(), 1])?;
        for (cache, method) in &*sequences {
            if cache.batch() != 1 {
                let what = "cache [batch] of a row of the step";
                return Err(SparqError::shape(what, [1], [cache.batch()]));
            }
            self.check_window(cache)?;
            method.check(cache)?;
        }
        let heads = self.heads(x, norm);
        let attend = |(row, (cache, method)): (usize, &mut (&mut KvCache, &Method))| {
            let [q, k, v] = heads.clone().map(|y| y.slice_dim(0, row..row + 1));
            let q = cache.prepare(q, k, v, self.rotary.as_ref())?;
            method.decode_checked(q, cache)
        };
        let rows = sequences.iter_mut().enumerate().map(attend);
        let y = Tensor::cat(rows.collect::<Result<Vec<_>, _>>()?, 0);
        let [batch, heads, len, d] = y.dims();
        Ok(self.output(y.reshape([batch, len, heads, d]), residual))
    }
}
