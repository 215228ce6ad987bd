//! The configuration of a cache.

use burn::config::Config;
use burn::tensor::{DType, Device, FloatDType};

use super::KvCache;
use super::rows::RowFormat;
use crate::{Sketch, SparqError};

/// Configuration of a [`KvCache`].
///
/// ```
/// use burn::tensor::{Device, FloatDType};
/// use sparq::{KvCacheConfig, Sketch};
///
/// // 2 sequences, 8 KV heads, head_dim 64.
/// let cache = KvCacheConfig::new(2, 8, 64)
///     .with_capacity(1000)
///     .with_dtype(FloatDType::F32)
///     .with_sketch(Some(Sketch::Bits4))
///     .init(&Device::default())?;
/// assert_eq!((cache.len(), cache.capacity()), (0, 1024));
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Config, Copy, Debug, PartialEq)]
pub struct KvCacheConfig {
    /// B: the number of sequences.
    pub batch: usize,
    /// H_kv: KV heads.
    pub kv_heads: usize,
    /// d: elements of a key or value.
    pub head_dim: usize,
    /// The number of positions to allocate at first. The cache grows by doubling.
    #[config(default = 64)]
    pub capacity: usize,
    /// The type of K and V in floats, and of a full sketch.
    #[config(default = "FloatDType::F32")]
    pub dtype: FloatDType,
    /// How K and V are stored; see [`Method::rows`](crate::Method::rows).
    #[config(default = "RowFormat::Float")]
    pub rows: RowFormat,
    /// The key sketch that the method reads; see [`Method::sketch`](crate::Method::sketch).
    #[config(default = "None")]
    pub sketch: Option<Sketch>,
    /// W: the sliding window. A query attends to the last W positions, its own included; all if
    /// `None`.
    #[config(default = "None")]
    pub window: Option<usize>,
    /// The bound c of exact logits x, which become c tanh(x / c), as in Gemma 2; none if `None`.
    #[config(default = "None")]
    pub softcap: Option<f64>,
}

impl KvCacheConfig {
    /// The number of positions inside the window, of `seq_len`.
    pub fn attended(&self, seq_len: usize) -> usize {
        self.window.map_or(seq_len, |window| seq_len.min(window))
    }

    /// Makes an empty cache.
    ///
    /// # Errors
    /// [`SparqError::Shape`] if a size is 0, [`SparqError::Value`] if the softcap is not
    /// positive, the window is not 1 to 2^31 - 1, or rows are to be in 8 bits and the head_dim is
    /// no multiple of 4, [`SparqError::Dtype`] if the device does not support the type.
    pub fn init(&self, device: &Device) -> Result<KvCache, SparqError> {
        let sizes = [self.batch, self.kv_heads, self.head_dim];
        if sizes.contains(&0) {
            let what = "cache [batch, kv_heads, head_dim], all at least 1";
            return Err(SparqError::shape(what, [0; 3], sizes));
        }
        // Devices count positions in 32 bits.
        let usable = |window: usize| window > 0 && i32::try_from(window).is_ok();
        if let Some(window) = self.window.filter(|&window| !usable(window)) {
            let expected = format!("1 (the current token) to {}", i32::MAX);
            return Err(SparqError::value("window", expected, window));
        }
        check_softcap(self.softcap)?;
        self.rows.check(self.head_dim)?;
        let device = &device.clone().inner();
        self.check_dtype(device)?;
        Ok(KvCache::empty(*self, device))
    }

    fn check_dtype(&self, device: &Device) -> Result<(), SparqError> {
        let usable = |dtype: &FloatDType| device.supports_dtype(DType::from(*dtype));
        if usable(&self.dtype) {
            return Ok(());
        }
        use FloatDType::{BF16, F16, F32, F64};
        let supported = [F32, F16, BF16, F64].into_iter().filter(usable);
        let supported: Vec<String> = supported.map(|dtype| format!("{dtype:?}")).collect();
        Err(SparqError::Dtype {
            device: format!("{device:?}"),
            dtype: format!("{:?}", self.dtype),
            supported: supported.join(", "),
        })
    }
}

/// Checks the bound of the logits.
pub(crate) fn check_softcap(softcap: Option<f64>) -> Result<(), SparqError> {
    match softcap {
        Some(bound) if !(bound > 0.0 && bound.is_finite()) => {
            Err(SparqError::value("softcap", "a positive number", bound))
        }
        _ => Ok(()),
    }
}
