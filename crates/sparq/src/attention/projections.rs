//! Attention from existing linear layers.

use super::{RmsNormConfig, SparqAttention, SparqAttentionConfig};
use crate::{LinearLayer, SparqError};

impl SparqAttentionConfig {
    /// Makes the module from the linear layers of another attention.
    ///
    /// They are q, D -> H d; k and v, D -> H_kv d; o, H d -> D. They keep their biases: `qkv_bias`
    /// and `o_bias` are ignored. The norms of the heads start at 1.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::tensor::Device;
    /// use sparq::SparqAttentionConfig;
    ///
    /// let device = Device::default();
    /// let linear = |from, to| LinearConfig::new(from, to).init(&device);
    /// let own = [linear(64, 64), linear(64, 32), linear(64, 32), linear(64, 64)];
    /// let attention = SparqAttentionConfig::new(64, 4, 2, 16).init_with(own)?;
    /// assert!(attention.q_proj.bias().is_some());
    ///
    /// let short = [linear(64, 64), linear(64, 16), linear(64, 32), linear(64, 64)];
    /// let error = SparqAttentionConfig::new(64, 4, 2, 16).init_with(short).unwrap_err();
    /// let expected = "weight of k [d_in, d_out]: expected shape [64, 32], found [64, 16]";
    /// assert_eq!(error.to_string(), expected);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// As [`SparqAttentionConfig::init`], and [`SparqError::Shape`] for a layer of another size.
    pub fn init_with(
        &self,
        projections: [impl Into<LinearLayer>; 4],
    ) -> Result<SparqAttention, SparqError> {
        self.validate()?;
        let [q_proj, k_proj, v_proj, o_proj] = projections.map(Into::into);
        let q = self.n_heads * self.head_dim;
        let kv = self.n_kv_heads * self.head_dim;
        for (what, linear, expected) in [
            ("weight of q [d_in, d_out]", &q_proj, [self.d_model, q]),
            ("weight of k [d_in, d_out]", &k_proj, [self.d_model, kv]),
            ("weight of v [d_in, d_out]", &v_proj, [self.d_model, kv]),
            ("weight of o [d_in, d_out]", &o_proj, [q, self.d_model]),
        ] {
            let found = linear.dims();
            if found != expected {
                return Err(SparqError::shape(what, expected, found));
            }
        }
        let device = q_proj.device();
        let norm = || {
            let norm = |epsilon| RmsNormConfig::new(self.head_dim).with_epsilon(epsilon);
            self.qk_norm_eps.map(|epsilon| norm(epsilon).init(&device))
        };
        let rotary = self.rotary.as_ref().map(|rotary| rotary.init(&device));
        Ok(SparqAttention {
            q_norm: norm(),
            k_norm: norm(),
            rotary: rotary.transpose()?,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            window: self.window,
            softcap: self.softcap,
            query_scale: self.query_scale,
        })
    }
}
