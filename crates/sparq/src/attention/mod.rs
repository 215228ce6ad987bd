//! The attention module that a burn user puts in their own model: [`SparqAttention`].

mod causal;
mod projections;
mod received;
pub mod rotary;

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};

use self::causal::{CHUNK, causal_attention};
use self::received::received_attention;
use crate::{KvCache, KvCacheConfig, Method, Rotary, RotaryConfig, RowSpans, SparqError};

/// Configuration of a [`SparqAttention`].
#[derive(Config, Debug, PartialEq)]
pub struct SparqAttentionConfig {
    /// D: elements of an input and output vector.
    pub d_model: usize,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: key/value heads, a divisor of H. Fewer than H is grouped-query attention, 1 multi-query attention.
    pub n_kv_heads: usize,
    /// d: elements of a query, key or value of one head.
    pub head_dim: usize,
    /// Whether the projections of queries, keys and values have a bias.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    #[config(default = false)]
    pub o_bias: bool,
    /// Rotary position embedding of queries and keys; none if `None`.
    #[config(default = "None")]
    pub rotary: Option<RotaryConfig>,
    /// The epsilon of an RMS norm over each head of the queries and of the keys, before they turn (as in Qwen3); no norm if `None`.
    #[config(default = "None")]
    pub qk_norm_eps: Option<f64>,
    /// W: a query attends to the last W positions only, its own included (sliding window); to all of them if `None`.
    #[config(default = "None")]
    pub window: Option<usize>,
}

impl SparqAttentionConfig {
    /// The module, with random weights.
    ///
    /// # Errors
    /// [`SparqError`] where a size or the window is 0, the query heads are no multiple of the key/value heads, the epsilon is not positive, or the rotary
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
        let fail = |field, expected: String, found, advice| {
            Err(SparqError::Config {
                field,
                expected,
                found,
                advice,
            })
        };
        for (field, size) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("window", self.window.unwrap_or(1)),
        ] {
            if size == 0 {
                return fail(field, "at least 1".into(), 0, "raise it");
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a multiple of {} (the n_kv_heads)", self.n_kv_heads);
            return fail(
                "n_heads",
                expected,
                self.n_heads,
                "every key/value head serves as many query heads",
            );
        }
        if let Some(epsilon) = self.qk_norm_eps
            && !(epsilon > 0.0 && epsilon.is_finite())
        {
            return Err(SparqError::Value {
                what: "qk_norm_eps",
                expected: "a positive number".into(),
                found: epsilon.to_string(),
            });
        }
        match &self.rotary {
            Some(rotary) if rotary.head_dim != self.head_dim => fail(
                "rotary head_dim",
                format!("{} (the attention's)", self.head_dim),
                rotary.head_dim,
                "set both to the same",
            ),
            Some(rotary) => rotary.frequencies().map(drop),
            None => Ok(()),
        }
    }
}

/// Grouped-query attention with a KV cache, dense over a prompt and with any [`Method`] for each token after it.
///
/// [`forward`](SparqAttention::forward) is `softmax(q K^T / sqrt(d) + causal mask) V` with projections around it. Without a cache it is the layer that is
/// trained: differentiable, and the same with every method. With a cache it is the prefill. [`decode`](SparqAttention::decode)
/// is one step of generation, where [`Method`] chooses what is read of the cache; SparQ needs no training and changes no weight.
///
/// With a window of W positions, query t sees the keys max(0, t - W + 1) ..= t, in training, prefill and step; what SparQ is then, [`KvCache`] says.
///
/// ```
/// use burn::tensor::{Device, Distribution, FloatDType, Tensor};
/// use sparq::{KvCache, Method, RotaryConfig, SparqAttentionConfig, SparqConfig};
///
/// let device = Device::default();
/// let attention = SparqAttentionConfig::new(64, 4, 2, 16).with_rotary(Some(RotaryConfig::new(16))).init(&device)?;
/// let x = Tensor::<3>::random([1, 41, 64], Distribution::Normal(0.0, 1.0), &device);
///
/// // A prompt of 40 vectors, then a step in which r = 4 of 16 components choose k = 12 of 41 positions.
/// let method = Method::from(SparqConfig::new(4, 12));
/// let mut cache = KvCache::new(&attention.cache_config(1, 64, FloatDType::F32, &method), &device)?;
/// let y = attention.forward(x.clone().slice_dim(1, 0..40), Some(&mut cache))?;
/// let step = attention.decode(x.clone().slice_dim(1, 40..41), &mut cache, &method)?;
/// assert_eq!((y.dims(), step.dims(), cache.len()), ([1, 40, 64], [1, 1, 64], 41));
///
/// // With k >= S a step is dense attention: what `forward` gives for the whole sequence.
/// cache.truncate(40);
/// let step = attention.decode(x.clone().slice_dim(1, 40..41), &mut cache, &Method::from(SparqConfig::new(4, 41)))?;
/// let whole = attention.forward(x, None)?.slice_dim(1, 40..41);
/// assert!((step - whole).abs().max().into_scalar::<f32>() < 1e-5);
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Module, Debug)]
pub struct SparqAttention {
    /// Queries: D -> H d.
    pub q_proj: Linear,
    /// Keys: D -> H_kv d.
    pub k_proj: Linear,
    /// Values: D -> H_kv d.
    pub v_proj: Linear,
    /// Output: H d -> D.
    pub o_proj: Linear,
    /// Norm of each head of the queries, over its d elements, before they turn.
    pub q_norm: Option<RmsNorm>,
    /// The same for the keys.
    pub k_norm: Option<RmsNorm>,
    /// Rotary position embedding of queries and keys.
    pub rotary: Option<Rotary>,
    /// H: query heads.
    pub n_heads: usize,
    /// H_kv: key/value heads.
    pub n_kv_heads: usize,
    /// d: elements of a query, key or value of one head.
    pub head_dim: usize,
    /// W: how many of the last positions a query attends to, its own included; all if `None`.
    #[module(skip)]
    pub window: Option<usize>,
}

impl SparqAttention {
    /// The configuration of a cache for this module: `batch` sequences, room for `capacity` positions at first, and what `method` reads.
    pub fn cache_config(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> KvCacheConfig {
        KvCacheConfig {
            batch,
            kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            capacity,
            dtype,
            sketch: method.sketch(),
            window: self.window,
        }
    }

    /// Dense causal attention, x [B, T, D] -> [B, T, D].
    ///
    /// Without a cache, x is the whole sequence and the result is differentiable in x and in every weight. With one, x continues what the cache
    /// holds and is appended to it, and left padding declared in the cache is not attended to; what the cache stores is detached, so
    /// gradients reach only the query and output projections. The scores of a chunk of queries are held at a time: memory grows with T, not with its
    /// square (except for what a backward pass needs).
    ///
    /// # Errors
    /// [`SparqError::Shape`] if x does not fit the module or the cache, [`SparqError::Value`] if the cache was made for another window.
    pub fn forward(
        &self,
        x: Tensor<3>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<3>, SparqError> {
        let Some(cache) = cache else {
            self.check(&x, [0, 0])?;
            let rows = RowSpans::empty(x.dims()[0]);
            let (q, k, v) = self.project(x, &rows);
            return Ok(self.output(causal_attention(q, k, v, &rows, self.window, CHUNK)));
        };
        self.check(&x, [cache.batch(), 0])?;
        self.check_window(cache)?;
        cache.check_whole("a prefill")?;
        let (dtype, before) = (FloatDType::from(x.dtype()), cache.rows().clone());
        let (q, k, v) = self.project(x, &before);
        cache.append(k, v)?;
        let filled = |t: &Tensor<4>| t.clone().slice_dim(2, 0..cache.len()).cast(dtype);
        let (k, v) = (filled(&cache.tensors().k), filled(&cache.tensors().v));
        let v = if before.common_end().is_none() {
            without_stale(v, cache.rows())
        } else {
            v
        };
        if cache.records_attention() {
            let received = received_attention(&q, &k, &before, self.window, CHUNK);
            cache.add_received(received);
        }
        Ok(self.output(causal_attention(q, k, v, &before, self.window, CHUNK)))
    }

    /// One step: x [B, 1, D] -> [B, 1, D], appended to the cache and attending to it with `method`. Not differentiable: gradients reach the output projection only.
    ///
    /// # Errors
    /// As [`SparqAttention::forward`], and what [`Method::decode`] returns; the cache is then unchanged.
    pub fn decode(
        &self,
        x: Tensor<3>,
        cache: &mut KvCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.check(&x, [cache.batch(), 1])?;
        self.check_window(cache)?;
        method.validate(self.head_dim)?;
        method.check_cache(cache)?;
        // With one position, heads lie as the projections write them: nothing is swapped, and nothing copied for it.
        let batch = x.dims()[0];
        let [q, k, v] = self.heads(x).map(|y| {
            let heads = y.dims()[2];
            y.reshape([batch, heads, 1, self.head_dim])
        });
        let q = cache.prepare(q, k, v, self.rotary.as_ref())?;
        let y = method.decode(q, cache)?;
        Ok(self
            .o_proj
            .forward(y.reshape([batch, 1, self.n_heads * self.head_dim])))
    }

    /// x [B, T, D] -> q [B, H, T, d], k and v [B, H_kv, T, d], q and k turned to their positions behind `rows`.
    fn project(&self, x: Tensor<3>, rows: &RowSpans) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let len = x.dims()[1];
        let [q, k, v] = self.heads(x).map(|y| y.swap_dims(1, 2));
        match &self.rotary {
            None => (q, k, v),
            Some(rotary) => {
                let angles = rotary.angles(positions(rows, len, &q.device()));
                (angles.turn(q), angles.turn(k), v)
            }
        }
    }

    /// x [B, T, D] -> q [B, T, H, d], k and v [B, T, H_kv, d], not turned yet.
    fn heads(&self, x: Tensor<3>) -> [Tensor<4>; 3] {
        let [batch, len, _] = x.dims();
        let heads = |projection: &Linear, heads: usize, norm: Option<&RmsNorm>| {
            let y = projection.forward(x.clone());
            let y = y.reshape([batch, len, heads, self.head_dim]);
            match norm {
                Some(norm) => norm.forward(y),
                None => y,
            }
        };
        [
            heads(&self.q_proj, self.n_heads, self.q_norm.as_ref()),
            heads(&self.k_proj, self.n_kv_heads, self.k_norm.as_ref()),
            heads(&self.v_proj, self.n_kv_heads, None),
        ]
    }

    /// [B, H, T, d] -> [B, T, D].
    fn output(&self, y: Tensor<4>) -> Tensor<3> {
        let [batch, heads, len, d] = y.dims();
        self.o_proj
            .forward(y.swap_dims(1, 2).reshape([batch, len, heads * d]))
    }

    fn check_window(&self, cache: &KvCache) -> Result<(), SparqError> {
        let found = cache.config().window;
        if found == self.window {
            return Ok(());
        }
        let words = |window: Option<usize>| match window {
            Some(window) => format!("{window} positions"),
            None => "none".into(),
        };
        Err(SparqError::Value {
            what: "window of the cache",
            expected: format!("{} (the attention's)", words(self.window)),
            found: words(found),
        })
    }

    /// Checks x [B, T, D] against the module and `[B, T]`, where 0 stands for any size.
    fn check(&self, x: &Tensor<3>, [batch, len]: [usize; 2]) -> Result<(), SparqError> {
        let expected = [batch, len, self.q_proj.weight.dims()[0]];
        let fits = |(&found, &expected): (&usize, &usize)| {
            found > 0 && (expected == 0 || found == expected)
        };
        if x.dims().iter().zip(&expected).all(fits) {
            return Ok(());
        }
        let what = "attention input [batch, length, d_model]";
        Err(SparqError::Shape {
            what,
            expected: expected.to_vec(),
            found: x.dims().to_vec(),
        })
    }
}

/// The positions of the `len` tokens behind `rows`, without the left padding: [B, len], or [1, len] where all sequences share them.
///
/// Padding itself is at position 0, as in transformers, where positions are the running count of the attention mask.
fn positions(rows: &RowSpans, len: usize, device: &Device) -> Tensor<2, Int> {
    let offset = |row: usize| rows.end[row] as i64 - rows.start[row] as i64;
    let range = |from: i64| {
        Tensor::<1, Int>::arange(from..from + len as i64, (device, DType::I32)).unsqueeze::<2>()
    };
    let first = offset(0);
    if first >= 0 && (1..rows.batch()).all(|row| offset(row) == first) {
        return range(first);
    }
    let offsets: Vec<i32> = (0..rows.batch()).map(|row| offset(row) as i32).collect();
    let offsets =
        Tensor::<1, Int>::from_data(offsets.as_slice(), (device, DType::I32)).unsqueeze_dim::<2>(1);
    (range(0) + offsets).clamp_min(0)
}

/// V [B, H_kv, S, d] with zeros behind the end of each sequence, where buffers may hold NaN from earlier use that a weight of 0 would not silence.
fn without_stale(v: Tensor<4>, rows: &RowSpans) -> Tensor<4> {
    let shape = v.dims();
    match rows.valid(&v.device()) {
        Some(valid) => v.mask_fill(valid.bool_not().unsqueeze_dim::<4>(3).expand(shape), 0.0),
        None => v,
    }
}
