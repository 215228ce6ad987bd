//! What is timed on each case. A new contender is a type that implements [`Contender`] and a line in [`all`].

use std::any::Any;
use std::fmt;

use anyhow::Result;
use burn::tensor::module::attention;
use serde::{Deserialize, Serialize};
use sparq::{CacheShape, Sketch, SparqConfig, Transfers, op};

use crate::buffers::{Source, copy};
use crate::preset::Case;

/// The method of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// Dense attention of this project, [`op::dense_decode`].
    Dense,
    /// Dense attention of burn, `burn::tensor::module::attention`. It knows no groups: where g > 1, K and V were expanded to all heads before.
    DenseBurn,
    /// SparQ, [`op::sparq_decode`].
    Sparq,
}

/// The part of a step that a row times. The stages of a kernel that can be launched alone are variants to add here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// All of it.
    Whole,
}

impl Stage {
    /// The name in JSON files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Whole => "whole",
        }
    }
}

/// What a call returns: kept until the device has done the work, since a lazy backend may leave out work that nobody waits for.
pub struct Kept(#[allow(dead_code, reason = "held, never read")] Box<dyn Any>);

impl Kept {
    /// Keeps a result.
    pub fn new(result: impl Any) -> Self {
        Self(Box::new(result))
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

/// Makes one call on the buffer set of this index. It holds the buffers.
pub type Calls = Box<dyn Fn(usize) -> Kept>;

/// Something to time.
pub trait Contender {
    /// The method.
    fn method(&self) -> MethodName;

    /// The part of it.
    fn stage(&self) -> Stage {
        Stage::Whole
    }

    /// SparQ's settings, for SparQ.
    fn settings(&self) -> Option<SparqConfig> {
        None
    }

    /// What has to be moved, whatever else the implementation moves: elements and bytes by the cost model.
    fn transfers(&self, case: &Case) -> Transfers;

    /// Bytes of one buffer set.
    fn set_bytes(&self, case: &Case) -> f64;

    /// Makes `sets` buffer sets and the calls on them.
    ///
    /// # Errors
    /// When the device can't hold them.
    fn prepare(&self, source: &Source, sets: usize) -> Result<Calls>;
}

/// Everything that is timed on a case, dense attention of this project first: the others are related to it.
pub fn all(case: &Case) -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = vec![Box::new(Dense), Box::new(DenseBurn)];
    for &settings in &case.settings {
        all.push(Box::new(Sparq(settings)));
    }
    all
}

/// Bytes of a whole cache with this sketch.
fn cache_bytes(case: &Case, sketch: Option<Sketch>) -> f64 {
    let kv = case.shape.kv_bytes(case.dtype);
    let element_bits = (case.dtype.bytes() * 8) as f64;
    let share = sketch.map_or(0.0, |sketch| {
        sketch.bits().map_or(1.0, |bits| bits as f64 / element_bits)
    });
    kv * (1.0 + share / 2.0)
}

struct Dense;

impl Contender for Dense {
    fn method(&self) -> MethodName {
        MethodName::Dense
    }

    fn transfers(&self, case: &Case) -> Transfers {
        Transfers::dense(&cache_shape(case), case.shape.seq_len)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, None)
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Calls> {
        let caches = source.caches(None, sets)?;
        let q = source.q.clone();
        Ok(Box::new(move |set| {
            let cache = caches.sets[set].clone();
            Kept::new(op::dense_decode(q.clone(), cache, &caches.rows))
        }))
    }
}

struct DenseBurn;

impl Contender for DenseBurn {
    fn method(&self) -> MethodName {
        MethodName::DenseBurn
    }

    fn transfers(&self, case: &Case) -> Transfers {
        Dense.transfers(case)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, None) * case.shape.group_size() as f64
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Calls> {
        let [batch, kv_heads, len, head_dim] = source.k.dims();
        let group = source.group_size;
        let expanded = |tensor: &burn::tensor::Tensor<4>| match group {
            1 => copy(tensor),
            _ => tensor
                .clone()
                .unsqueeze_dim::<5>(2)
                .expand([batch, kv_heads, group, len, head_dim])
                .reshape([batch, kv_heads * group, len, head_dim]),
        };
        let caches: Vec<_> = (0..sets)
            .map(|_| (expanded(&source.k), expanded(&source.v)))
            .collect();
        let q = source.q.clone();
        Ok(Box::new(move |set| {
            let (k, v) = caches[set].clone();
            Kept::new(attention(q.clone(), k, v, None, None, Default::default()))
        }))
    }
}

struct Sparq(SparqConfig);

impl Contender for Sparq {
    fn method(&self) -> MethodName {
        MethodName::Sparq
    }

    fn settings(&self) -> Option<SparqConfig> {
        Some(self.0)
    }

    fn transfers(&self, case: &Case) -> Transfers {
        Transfers::sparq(&cache_shape(case), case.shape.seq_len, &self.0)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, Some(self.0.sketch))
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Calls> {
        let caches = source.caches(Some(self.0.sketch), sets)?;
        let (q, config) = (source.q.clone(), self.0);
        Ok(Box::new(move |set| {
            let cache = caches.sets[set].clone();
            Kept::new(op::sparq_decode(q.clone(), cache, &caches.rows, &config))
        }))
    }
}

fn cache_shape(case: &Case) -> CacheShape {
    case.shape.cache(case.dtype)
}
