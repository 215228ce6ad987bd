//! The shape of one decode step of attention.

use std::fmt;
use std::str::FromStr;

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sparq::cost::{CacheShape, StepShape};

/// One decode step: q [B, H, 1, d] on a cache of K and V [B, H_kv, S, d].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// B: number of sequences.
    pub batch: usize,
    /// H: number of query heads.
    pub heads: usize,
    /// H_kv: number of KV heads.
    pub kv_heads: usize,
    /// d: head dimension.
    pub head_dim: usize,
    /// S: number of positions in the cache, the current token included.
    pub seq_len: usize,
}

impl Shape {
    /// Makes the shape (B, H, H_kv, d, S).
    pub const fn new(
        batch: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        seq_len: usize,
    ) -> Self {
        Self {
            batch,
            heads,
            kv_heads,
            head_dim,
            seq_len,
        }
    }

    /// g: number of query heads per KV head.
    pub fn group_size(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The sizes of a step except S.
    pub fn step(&self, dtype: CacheType) -> StepShape {
        StepShape {
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            element_bytes: dtype.bytes(),
        }
    }

    /// The sizes that determine the bytes of a step, with heads summed over the batch.
    pub fn cache(&self, dtype: CacheType) -> CacheShape {
        self.step(dtype).cache()
    }

    /// Bytes of K and V together.
    pub fn kv_bytes(&self, dtype: CacheType) -> f64 {
        let elements = 2 * self.batch * self.kv_heads * self.seq_len * self.head_dim;
        (elements * dtype.bytes()) as f64
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            batch,
            heads,
            kv_heads,
            head_dim,
            seq_len,
        } = self;
        write!(f, "B={batch} H={heads}/{kv_heads} d={head_dim} S={seq_len}")
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = |why: &str| {
            format!("expected B,H,H_kv,d,S such as 1,32,8,128,4096{why}, found {text:?}")
        };
        let sizes: Vec<usize> = text
            .split(',')
            .map(|size| size.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|_| error(""))?;
        let [batch, heads, kv_heads, head_dim, seq_len] = sizes[..] else {
            return Err(error(""));
        };
        if sizes.contains(&0) {
            return Err(error(", all at least 1"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(error(", H a multiple of H_kv"));
        }
        Ok(Self::new(batch, heads, kv_heads, head_dim, seq_len))
    }
}

/// The element type of K and V.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum CacheType {
    /// 32 bits, IEEE single precision.
    F32,
    /// 16 bits, IEEE half precision.
    F16,
    /// 16 bits, bfloat16.
    Bf16,
}

impl CacheType {
    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            CacheType::F32 => 4,
            CacheType::F16 | CacheType::Bf16 => 2,
        }
    }

    /// The name in JSON files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Bf16 => "bf16",
        }
    }
}

impl From<CacheType> for FloatDType {
    fn from(dtype: CacheType) -> Self {
        match dtype {
            CacheType::F32 => FloatDType::F32,
            CacheType::F16 => FloatDType::F16,
            CacheType::Bf16 => FloatDType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_parses_five_sizes() {
        let shape = Shape::new(1, 32, 8, 128, 4096);
        assert_eq!("1,32,8,128,4096".parse(), Ok(shape));
        for (text, why) in [
            ("1,32,8", "B,H,H_kv,d,S"),
            ("1,32,8,128,x", "B,H,H_kv,d,S"),
            ("1,32,8,128,0", "at least 1"),
            ("1,32,5,128,64", "multiple of H_kv"),
        ] {
            let error = text.parse::<Shape>().unwrap_err();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }
}
