//! The attention module for models in burn: [`SparqAttention`].

mod each;
mod projections;
mod received;
pub mod rotary;

use burn::config::Config;
use burn::module::Module;
use burn::nn::{LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};

use self::received::received_attention;
use crate::cache::check_softcap;
use crate::ops::{
    Norm, Projections, Rotary, RowTensors, Spans, causal_attention, decode_linear, normalize,
};
use crate::{KvCache, KvCacheConfig, LinearLayer, Method, RotaryConfig, SparqError};

/// Configuration of a [`SparqAttention`].
#[derive(Config, Debug, PartialEq)]
pub struct SparqAttentionConfig {
    /// D: elements of an input and output vector.
    pub d_model: usize,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: KV heads, a divisor of H.
    ///
    /// Fewer than H is grouped-query attention, 1 is multi-query attention.
    pub n_kv_heads: usize,
    /// d: elements of a query, key or value of one head.
    pub head_dim: usize,
    /// Whether the projections of queries, keys and values have a bias.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    #[config(default = false)]
    pub o_bias: bool,
    /// The rotary position embedding of queries and keys; none if `None`.
    #[config(default = "None")]
    pub rotary: Option<RotaryConfig>,
    /// The epsilon of an RMS norm over each head of queries and keys, before RoPE (as in Qwen3).
    ///
    /// No norm if `None`.
    #[config(default = "None")]
    pub qk_norm_eps: Option<f64>,
    /// W: the sliding window. A query attends to the last W positions, its own included; all if
    /// `None`.
    #[config(default = "None")]
    pub window: Option<usize>,
    /// The bound of the logits; see [`KvCacheConfig::softcap`].
    #[config(default = "None")]
    pub softcap: Option<f64>,
    /// A factor of the queries, for models that divide logits by another number than sqrt(d).
    #[config(default = "None")]
    pub query_scale: Option<f64>,
}

impl SparqAttentionConfig {
    /// Makes the module with random weights.
    ///
    /// # Errors
    /// [`SparqError`] if a size or the window is 0, the query heads are no multiple of the KV
    /// heads, the epsilon, the softcap or the query's scale is not positive, or the rotary
    /// embedding does not fit.
    pub fn init(&self, device: &Device) -> Result<SparqAttention, SparqError> {
        self.validate()?;
        let linear = |from, to, bias| LinearConfig::new(from, to).with_bias(bias).init(device);
        let kv = self.n_kv_heads * self.head_dim;
        let q = self.n_heads * self.head_dim;
        self.init_with([
            linear(self.d_model, q, self.qkv_bias),
            linear(self.d_model, kv, self.qkv_bias),
            linear(self.d_model, kv, self.qkv_bias),
            linear(q, self.d_model, self.o_bias),
        ])
    }

    /// Checks the sizes against each other.
    ///
    /// # Errors
    /// As [`SparqAttentionConfig::init`].
    pub fn validate(&self) -> Result<(), SparqError> {
        for (field, size) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("window", self.window.unwrap_or(1)),
        ] {
            if size == 0 {
                return Err(SparqError::config(field, "at least 1", 0, "raise it"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a multiple of {} (the n_kv_heads)", self.n_kv_heads);
            let reason = "every KV head serves the same number of query heads";
            return Err(SparqError::config(
                "n_heads",
                expected,
                self.n_heads,
                reason,
            ));
        }
        if let Some(epsilon) = self.qk_norm_eps
            && !(epsilon > 0.0 && epsilon.is_finite())
        {
            let expected = "a positive number";
            return Err(SparqError::value("qk_norm_eps", expected, epsilon));
        }
        if let Some(scale) = self.query_scale
            && !(scale > 0.0 && scale.is_finite())
        {
            return Err(SparqError::value("query_scale", "a positive number", scale));
        }
        check_softcap(self.softcap)?;
        match &self.rotary {
            Some(rotary) if rotary.head_dim != self.head_dim => Err(SparqError::config(
                "rotary head_dim",
                format!("{} (the attention's)", self.head_dim),
                rotary.head_dim,
                "set both to the same value",
            )),
            Some(rotary) => rotary.frequencies().map(drop),
            None => Ok(()),
        }
    }
}

/// Grouped-query attention with a KV cache: a dense prefill, then decode steps with any [`Method`].
///
/// [`forward`](SparqAttention::forward) computes `softmax(q K^T / sqrt(d) + causal mask) V` between
/// the projections. Without a cache it is the layer to train: differentiable, and independent of
/// the method. With a cache it is the prefill. [`decode`](SparqAttention::decode) is one decode
/// step, in which the [`Method`] determines what is read from the cache. SparQ needs no training
/// and changes no weights.
///
/// With a window of W positions, query t attends to the keys max(0, t - W + 1) ..= t, in training,
/// prefill and decode steps. [`KvCache`] describes SparQ with a window.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use sparq::{Method, RotaryConfig, SparqAttentionConfig, SparqConfig};
///
/// let device = Device::default();
/// let attention = SparqAttentionConfig::new(64, 4, 2, 16)
///     .with_rotary(Some(RotaryConfig::new(16)))
///     .init(&device)?;
/// let x = Tensor::<3>::random([1, 41, 64], Distribution::Normal(0.0, 1.0), &device);
///
/// // A prompt of 40 vectors, then a step: r = 4 of 16 components select k = 12 of 41 positions.
/// let method = Method::from(SparqConfig::new(4, 12));
/// let mut cache = attention.new_cache(1, 64, &method)?;
/// let y = attention.forward(x.clone().slice_dim(1, 0..40), Some(&mut cache))?;
/// let step = attention.decode(x.clone().slice_dim(1, 40..41), &mut cache, &method)?;
/// assert_eq!((y.dims(), step.dims(), cache.len()), ([1, 40, 64], [1, 1, 64], 41));
///
/// // With k >= S a step is dense attention, as `forward` on the whole sequence.
/// cache.truncate(40);
/// let all = Method::from(SparqConfig::new(4, 41));
/// let step = attention.decode(x.clone().slice_dim(1, 40..41), &mut cache, &all)?;
/// let whole = attention.forward(x, None)?.slice_dim(1, 40..41);
/// assert!((step - whole).abs().max().into_scalar::<f32>() < 1e-5);
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Module, Debug)]
pub struct SparqAttention {
    /// Queries: D -> H d.
    pub q_proj: LinearLayer,
    /// Keys: D -> H_kv d.
    pub k_proj: LinearLayer,
    /// Values: D -> H_kv d.
    pub v_proj: LinearLayer,
    /// Output: H d -> D.
    pub o_proj: LinearLayer,
    /// Norm of the queries before RoPE: of each head over its d elements, or of all heads together
    /// over H d elements (as in OLMo 2). The length of its weight determines which.
    pub q_norm: Option<RmsNorm>,
    /// The same for the keys.
    pub k_norm: Option<RmsNorm>,
    /// Rotary position embedding of queries and keys.
    pub rotary: Option<Rotary>,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: KV heads.
    pub n_kv_heads: usize,
    /// d: elements of a query, key or value of one head.
    pub head_dim: usize,
    /// W: the sliding window, in positions; none if `None`.
    #[module(skip)]
    pub window: Option<usize>,
    /// The bound of the logits; see [`KvCacheConfig::softcap`].
    #[module(skip)]
    pub softcap: Option<f64>,
    /// A factor of the queries, beside the division of the logits by sqrt(d).
    #[module(skip)]
    pub query_scale: Option<f64>,
}

impl SparqAttention {
    /// Returns the configuration of a cache for this module.
    ///
    /// It has `batch` sequences, `capacity` positions at first, and the rows and the sketch that
    /// `method` reads.
    pub fn cache_config(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> KvCacheConfig {
        KvCacheConfig::new(batch, self.n_kv_heads, self.head_dim)
            .with_capacity(capacity)
            .with_dtype(dtype)
            .with_rows(method.rows())
            .with_sketch(method.sketch())
            .with_window(self.window)
            .with_softcap(self.softcap)
    }

    /// Makes an empty cache for this module, on the device and in the type of its weights; in f32
    /// if they are packed.
    ///
    /// It has `batch` sequences, `capacity` positions at first, and what `method` reads. See
    /// [`cache_config`](Self::cache_config) for other types.
    ///
    /// # Errors
    /// As [`KvCacheConfig::init`].
    pub fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        method: &Method,
    ) -> Result<KvCache, SparqError> {
        let dtype = self.k_proj.dtype().unwrap_or(FloatDType::F32);
        let config = self.cache_config(batch, capacity, dtype, method);
        let mut cache = config.init(&self.k_proj.device())?;
        if method.reads_attention() {
            cache.record_attention()?;
        }
        Ok(cache)
    }

    /// Dense causal attention, x [B, T, D] -> [B, T, D].
    ///
    /// Without a cache, x is the whole sequence, and the result is differentiable in x and all
    /// weights. With a cache, x continues the cached sequence and is appended to it. Left padding
    /// of the cache is not attended to. The cache is detached, so gradients reach only the query
    /// and output projections. Memory grows with T and not with its square, apart from the memory
    /// of a backward pass.
    ///
    /// # Errors
    /// [`SparqError::Shape`] if x does not fit the module or the cache, [`SparqError::Value`] if
    /// the cache has another window or softcap.
    pub fn forward(
        &self,
        x: Tensor<3>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<3>, SparqError> {
        self.attend(x, Norm::None, None, cache)
    }

    /// Dense causal attention as a block of a decoder: x + attention(norm(x)), [B, T, D].
    ///
    /// Computes as [`forward`](Self::forward) between the norm and the residual stream, which are
    /// parts of the projections.
    ///
    /// # Errors
    /// As [`SparqAttention::forward`].
    pub fn forward_residual(
        &self,
        x: Tensor<3>,
        norm: Norm,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<3>, SparqError> {
        self.attend(x.clone(), norm, Some(x), cache)
    }

    /// Dense causal attention of norm(x), [B, T, D], without the residual stream.
    ///
    /// For a block of a decoder that changes the result before it adds it to the stream.
    ///
    /// # Errors
    /// As [`SparqAttention::forward`].
    pub fn forward_normed(
        &self,
        x: Tensor<3>,
        norm: Norm,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<3>, SparqError> {
        self.attend(x, norm, None, cache)
    }

    fn attend(
        &self,
        x: Tensor<3>,
        norm: Norm,
        residual: Option<Tensor<3>>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<3>, SparqError> {
        let Some(cache) = cache else {
            self.check(&x, [0, 0])?;
            let [batch, len, _] = x.dims();
            let [q, k, v] = self.heads(x, norm);
            let (q, k) = self.rotate(q, k, &Spans::empty(batch), 0);
            let spans = Spans::full(batch, len);
            let device_spans = spans.to_tensor(&q.device());
            let rows = [k, v].map(RowTensors::from);
            let y = causal_attention(q, rows, device_spans, &spans, self.window, self.softcap);
            return Ok(self.output(y.swap_dims(1, 2), residual));
        };
        self.check(&x, [cache.batch(), 0])?;
        self.check_window(cache)?;
        cache.check_whole("a prefill")?;
        cache.check_no_idle("a prefill")?;
        let before = cache.spans().clone();
        let [q, k, v] = self.heads(x, norm);
        // A cache is outside autodiff, queries need not be. The table has the angles of each
        // position in a sequence that ends there, and not those of a prompt that grows them.
        let grows = self.rotary.as_ref().is_some_and(Rotary::grows);
        let q = match q.is_autodiff() || grows {
            true => {
                cache.check_not_capturing("angles of RoPE that depend on the prompt")?;
                let (q, k) = self.rotate(q, k, &before, cache.capacity());
                cache.append(k, v)?;
                q
            }
            false => cache.prepare(q, k, v, self.rotary.as_ref())?,
        };
        if cache.states().observes_attention() {
            cache.check_not_capturing("a method that observes the attention of a prefill")?;
            let k = cache.tensors().k.at(0..cache.len());
            let received = received_attention(&q, &k, &before, self.window, self.softcap);
            cache.states_mut().observe_attention(received);
        }
        let spans = cache.causal_spans(&q)?;
        let tensors = cache.tensors();
        let (rows, device_spans) = (
            [tensors.k.clone(), tensors.v.clone()],
            tensors.spans.clone(),
        );
        let y = causal_attention(q, rows, device_spans, &spans, self.window, self.softcap);
        Ok(self.output(y.swap_dims(1, 2), residual))
    }

    /// Takes one decode step, x [B, 1, D] -> [B, 1, D].
    ///
    /// Appends the token to the cache and attends with `method`. Not differentiable: gradients
    /// reach the output projection only.
    ///
    /// # Errors
    /// As [`SparqAttention::forward`] and [`Method::decode`]. The cache is then unchanged.
    pub fn decode(
        &self,
        x: Tensor<3>,
        cache: &mut KvCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.step(x, Norm::None, None, cache, method)
    }

    /// Takes one decode step as a block of a decoder: x + attention(norm(x)), [B, 1, D].
    ///
    /// Computes as [`decode`](Self::decode) between the norm and the residual stream, which are
    /// parts of the projections.
    ///
    /// # Errors
    /// As [`SparqAttention::decode`].
    pub fn decode_residual(
        &self,
        x: Tensor<3>,
        norm: Norm,
        cache: &mut KvCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.step(x.clone(), norm, Some(x), cache, method)
    }

    /// Takes one decode step with norm(x), [B, 1, D], without the residual stream.
    ///
    /// For a block of a decoder that changes the result before it adds it to the stream.
    ///
    /// # Errors
    /// As [`SparqAttention::decode`].
    pub fn decode_normed(
        &self,
        x: Tensor<3>,
        norm: Norm,
        cache: &mut KvCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.step(x, norm, None, cache, method)
    }

    fn step(
        &self,
        x: Tensor<3>,
        norm: Norm,
        residual: Option<Tensor<3>>,
        cache: &mut KvCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.check(&x, [cache.batch(), 1])?;
        self.check_window(cache)?;
        method.check(cache)?;
        let [q, k, v] = self.heads(x, norm);
        let q = cache.prepare(q, k, v, self.rotary.as_ref())?;
        let y = method.decode_checked(q, cache)?;
        let [batch, heads, len, d] = y.dims();
        Ok(self.output(y.reshape([batch, len, heads, d]), residual))
    }

    /// Rotates q [B, H, T, d] and k [B, H_kv, T, d] to the positions after `spans`, of a cache of
    /// `capacity` positions.
    fn rotate(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        spans: &Spans,
        capacity: usize,
    ) -> (Tensor<4>, Tensor<4>) {
        let len = q.dims()[2];
        match &self.rotary {
            None => (q, k),
            Some(rotary) => {
                let count = |b: usize| (spans.end[b] + len).saturating_sub(spans.start[b]);
                let longest = (0..spans.batch()).map(count).max().unwrap_or(len);
                let positions = positions(spans, len, &q.device());
                let angles = rotary.angles_within(positions, longest, capacity);
                (angles.rotate(q), angles.rotate(k))
            }
        }
    }

    /// x [B, T, D] -> q [B, H, T, d], k and v [B, H_kv, T, d], before RoPE.
    fn heads(&self, x: Tensor<3>, norm: Norm) -> [Tensor<4>; 3] {
        let ([batch, len, width], d) = (x.dims(), self.head_dim);
        let [q, k, v] = self.products(x.reshape([batch * len, width]), norm);
        let part = |y: Tensor<2>, heads: usize, norm: Option<&RmsNorm>| {
            let y = match norm {
                Some(norm) => {
                    let width = norm.gamma.dims()[0];
                    let rows = batch * len * heads * d / width;
                    normalize(y.reshape([rows, width]), norm.into())
                }
                None => y,
            };
            match len {
                // The projections write the layout of heads.
                1 => y.reshape([batch, heads, 1, d]),
                _ => y.reshape([batch, len, heads, d]).swap_dims(1, 2),
            }
        };
        let q = part(q, self.n_heads, self.q_norm.as_ref());
        [
            match self.query_scale {
                Some(scale) => q * scale,
                None => q,
            },
            part(k, self.n_kv_heads, self.k_norm.as_ref()),
            part(v, self.n_kv_heads, None),
        ]
    }

    /// Norms x [rows, D] and multiplies it by the weights of q, k and v, in one operation.
    fn products(&self, x: Tensor<2>, norm: Norm) -> [Tensor<2>; 3] {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        if x.is_autodiff() || self.q_proj.is_autodiff() {
            // In three: parts of one result would have gradients of zeros where they have none.
            let x = normalize(x, norm);
            let product = |linear: &LinearLayer| {
                let projection = Projections::One(linear.into());
                decode_linear(x.clone(), Norm::None, projection, None)
            };
            return projections.map(product);
        }
        let [q, k, v] = projections.map(Into::into);
        let all = decode_linear(x, norm, Projections::Three(q, k, v), None);
        let [heads, kv_heads] = [self.n_heads, self.n_kv_heads].map(|heads| heads * self.head_dim);
        [
            all.clone().slice_dim(1, 0..heads),
            all.clone().slice_dim(1, heads..heads + kv_heads),
            all.slice_dim(1, heads + kv_heads..heads + 2 * kv_heads),
        ]
    }

    /// Maps the heads' outputs y [B, T, H, d] to [B, T, D], and adds the residual stream.
    fn output(&self, y: Tensor<4>, residual: Option<Tensor<3>>) -> Tensor<3> {
        let ([batch, len, heads, d], width) = (y.dims(), self.o_proj.dims()[1]);
        let y = y.reshape([batch * len, heads * d]);
        let residual = residual.map(|residual| residual.reshape([batch * len, width]));
        let projection = Projections::One((&self.o_proj).into());
        let y = decode_linear(y, Norm::None, projection, residual);
        y.reshape([batch, len, width])
    }

    fn check_window(&self, cache: &KvCache) -> Result<(), SparqError> {
        let KvCacheConfig {
            window: found,
            softcap,
            ..
        } = *cache.config();
        if softcap != self.softcap {
            let expected = format!("{:?} (the attention's)", self.softcap);
            let found = format!("{softcap:?}");
            return Err(SparqError::value("softcap of the cache", expected, found));
        }
        if found == self.window {
            return Ok(());
        }
        let words = |window: Option<usize>| match window {
            Some(window) => format!("{window} positions"),
            None => "none".into(),
        };
        let (expected, found) = (words(self.window), words(found));
        let expected = format!("{expected} (the attention's)");
        Err(SparqError::value("window of the cache", expected, found))
    }

    /// Checks x [B, T, D] against the module and `[B, T]`. 0 stands for any size.
    fn check(&self, x: &Tensor<3>, [batch, len]: [usize; 2]) -> Result<(), SparqError> {
        let expected = [batch, len, self.q_proj.dims()[0]];
        let fits = |(&found, &expected): (&usize, &usize)| {
            found > 0 && (expected == 0 || found == expected)
        };
        if x.dims().iter().zip(&expected).all(fits) {
            return Ok(());
        }
        let what = "attention input [batch, length, d_model]";
        Err(SparqError::shape(what, expected, x.dims()))
    }
}

/// The positions of the `len` tokens after `spans`, not counting left padding.
///
/// [B, len], or [1, len] if they are the same for all sequences. Padding itself is at position 0,
/// as in transformers, where positions are the running count of the attention mask.
fn positions(spans: &Spans, len: usize, device: &Device) -> Tensor<2, Int> {
    let offset = |b: usize| spans.end[b] as i64 - spans.start[b] as i64;
    let range = |from: i64| {
        Tensor::<1, Int>::arange(from..from + len as i64, (device, DType::I32)).unsqueeze::<2>()
    };
    let first = offset(0);
    if first >= 0 && (1..spans.batch()).all(|b| offset(b) == first) {
        return range(first);
    }
    let offsets: Vec<i32> = (0..spans.batch()).map(|b| offset(b) as i32).collect();
    let offsets = Tensor::<1, Int>::from_data(offsets.as_slice(), (device, DType::I32));
    (range(0) + offsets.unsqueeze_dim::<2>(1)).clamp_min(0)
}
