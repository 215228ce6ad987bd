//! What is timed on each case. A new contender is a type that implements [`Contender`] and a line in [`all`].

use std::any::Any;
use std::fmt;
use std::rc::Rc;

use anyhow::Result;
use burn::tensor::Tensor;
use burn::tensor::module::attention;
use serde::{Deserialize, Serialize};
use sparq::cost::CacheShape;
use sparq::ops::{CacheTensors, Spans};
use sparq::{Sketch, SparqConfig, Transfers, ops};

use crate::buffers::{Source, check, copy};
use crate::preset::{Case, Scope};
use crate::stage::Stage;
#[cfg(feature = "stages")]
use sparq::ops::Until;

/// The method of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// Dense attention of this project, [`ops::dense_decode`].
    Dense,
    /// Dense attention of burn, `burn::tensor::module::attention`. It knows no groups: where g > 1, K and V were expanded to all heads before.
    DenseBurn,
    /// SparQ, [`ops::sparq_decode`].
    Sparq,
}

/// What a call returns: kept until the device has done the work, since a lazy backend may leave out work that nobody waits for.
pub struct Kept {
    output: Option<Tensor<4>>,
    _rest: Box<dyn Any>,
}

impl Kept {
    /// Keeps what attention returned.
    pub fn output(output: Tensor<4>) -> Self {
        Self {
            output: Some(output),
            _rest: Box::new(()),
        }
    }

    /// Keeps what else there is.
    pub fn rest(rest: impl Any) -> Self {
        Self {
            output: None,
            _rest: Box::new(rest),
        }
    }

    /// See [`check`].
    ///
    /// # Errors
    /// When the device could not compute the output.
    pub fn check(self) -> Result<()> {
        self.output.map_or(Ok(()), check)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

/// Makes one call on the buffer set of this index. It holds the buffers.
pub type Calls = Box<dyn Fn(usize) -> Kept>;

/// A contender with its buffers.
pub struct Prepared {
    /// Whole calls.
    pub whole: Calls,
    /// Calls on the same buffers that end after a stage, in the order of the stages; the last stage ends with the whole.
    pub until: Vec<(Stage, Calls)>,
}

impl From<Calls> for Prepared {
    fn from(whole: Calls) -> Self {
        Self {
            whole,
            until: vec![],
        }
    }
}

/// Something to time.
pub trait Contender {
    /// The method.
    fn method(&self) -> MethodName;

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
    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared>;
}

/// Everything that is timed on a case, dense attention of this project first: the others are related to it.
pub fn all(case: &Case, scope: &Scope) -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = vec![Box::new(Dense)];
    if DenseBurn.set_bytes(case) <= scope.dense_burn_bytes {
        all.push(Box::new(DenseBurn));
    }
    for &settings in &case.settings {
        all.push(Box::new(Sparq(settings)));
    }
    all
}

/// Makes a step that ends after a stage.
type Prefix = fn(Tensor<4>, CacheTensors, &Spans, &SparqConfig) -> Kept;

/// The stages before the last that [`op`] can end after.
#[cfg(feature = "stages")]
const PREFIXES: &[(Stage, Prefix)] = &[
    (Stage::Score, |q, cache, rows, config| {
        Kept::rest(ops::sparq_decode_until(
            q,
            cache,
            rows,
            config,
            Until::Scores,
        ))
    }),
    (Stage::Select, |q, cache, rows, config| {
        Kept::rest(ops::sparq_decode_until(
            q,
            cache,
            rows,
            config,
            Until::Selection,
        ))
    }),
];

/// Without kernels no step can end after a stage.
#[cfg(not(feature = "stages"))]
const PREFIXES: &[(Stage, Prefix)] = &[];

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

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let caches = source.caches(None, sets)?;
        let q = source.q.clone();
        let calls: Calls = Box::new(move |set| {
            let cache = caches.sets[set].clone();
            Kept::output(ops::dense_decode(q.clone(), cache, &caches.rows))
        });
        Ok(calls.into())
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

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let [batch, kv_heads, len, head_dim] = source.k.dims();
        let group = source.group_size;
        let expanded = |tensor: &Tensor<4>| match group {
            1 => copy(tensor),
            _ => tensor
                .clone()
                .unsqueeze_dim::<5>(2)
                .expand([batch, kv_heads, group, len, head_dim])
                .reshape([batch, kv_heads * group, len, head_dim]),
        };
        let caches = (0..sets)
            .map(|_| {
                let (k, v) = (expanded(&source.k), expanded(&source.v));
                // Before attention, for which burn would try kernel after kernel.
                check(k.clone())?;
                check(v.clone())?;
                Ok((k, v))
            })
            .collect::<Result<Vec<_>>>()?;
        let q = source.q.clone();
        let calls: Calls = Box::new(move |set| {
            let (k, v) = caches[set].clone();
            Kept::output(attention(q.clone(), k, v, None, None, Default::default()))
        });
        Ok(calls.into())
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

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let caches = Rc::new(source.caches(Some(self.0.sketch), sets)?);
        let (q, config) = (source.q.clone(), self.0);
        let calls = |step: Prefix| -> Calls {
            let (q, caches) = (q.clone(), Rc::clone(&caches));
            Box::new(move |set| {
                let cache = caches.sets[set].clone();
                step(q.clone(), cache, &caches.rows, &config)
            })
        };
        Ok(Prepared {
            whole: calls(|q, cache, rows, config| {
                Kept::output(ops::sparq_decode(q, cache, rows, config))
            }),
            until: PREFIXES
                .iter()
                .map(|&(stage, prefix)| (stage, calls(prefix)))
                .collect(),
        })
    }
}

fn cache_shape(case: &Case) -> CacheShape {
    case.shape.cache(case.dtype)
}
