//! The implementations of attention that are timed on each case.
//!
//! To add one, implement [`Implementation`] for a type and add a line to [`all`].

use std::rc::Rc;

use anyhow::Result;
use burn::tensor::Tensor;
use burn::tensor::module::attention;
#[cfg(feature = "stages")]
use sparq::ops::Until;
use sparq::ops::{CacheTensors, Spans};
use sparq::{RowFormat, Sketch, SparqConfig, Transfers, ops};

use super::buffers::{Source, copy};
use super::case::{Case, Scope};
use super::record::MethodName;
use super::sharing::{Given, Sharing};
use super::stage::Stage;
use crate::calls::{Calls, Kept, check};

/// An implementation with its buffers.
pub struct Prepared {
    /// Calls of the whole step.
    pub whole: Calls,
    /// Calls on the same buffers that end after a stage, in the order of the stages. The last stage
    /// ends with the whole step.
    pub until: Vec<(Stage, Calls)>,
}

/// An implementation of attention to time.
pub trait Implementation {
    /// The method.
    fn method(&self) -> MethodName;

    /// SparQ's settings, if the method is SparQ.
    fn settings(&self) -> Option<SparqConfig> {
        None
    }

    /// The number of layers that a call computes; its time is that of one layer on average. `None`
    /// for a single layer.
    fn layers(&self) -> Option<usize> {
        None
    }

    /// The elements and bytes the method has to move in a layer. The implementation may move more.
    fn transfers(&self, case: &Case) -> Transfers;

    /// The size of one buffer set in bytes.
    fn set_bytes(&self, case: &Case) -> f64;

    /// Makes `sets` buffer sets and the calls on them.
    ///
    /// # Errors
    /// If the device cannot hold them.
    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared>;
}

/// Every implementation that is timed on a case. Dense attention of this project comes first: the
/// others are compared with it.
pub fn all(case: &Case, scope: &Scope) -> Vec<Box<dyn Implementation>> {
    let mut all: Vec<Box<dyn Implementation>> = vec![Box::new(Dense(RowFormat::Float))];
    if case.settings.iter().any(|one| one.rows == RowFormat::Int8) {
        all.push(Box::new(Dense(RowFormat::Int8)));
    }
    if DenseBurn.set_bytes(case) <= scope.dense_burn_bytes {
        all.push(Box::new(DenseBurn));
    }
    for &settings in &case.settings {
        all.push(Box::new(Sparq(settings)));
        if let Some(layers) = case.sharing {
            all.push(Box::new(Given(settings)));
            all.push(Box::new(Sharing {
                config: settings,
                layers,
            }));
        }
    }
    all
}

/// Makes a step that ends after a stage.
type Prefix = fn(Tensor<4>, CacheTensors, &Spans, &SparqConfig) -> Kept;

/// The stages before the last that [`op`] can end after.
#[cfg(feature = "stages")]
const PREFIXES: &[(Stage, Prefix)] = &[
    (Stage::Score, |q, cache, spans, config| {
        Kept::rest(ops::sparq_decode_until(
            q,
            cache,
            spans,
            config,
            Until::Scores,
        ))
    }),
    (Stage::Select, |q, cache, spans, config| {
        Kept::rest(ops::sparq_decode_until(
            q,
            cache,
            spans,
            config,
            Until::Selection,
        ))
    }),
];

/// Without kernels no step can end after a stage.
#[cfg(not(feature = "stages"))]
const PREFIXES: &[(Stage, Prefix)] = &[];

/// Returns the bytes of a whole cache with these rows and this sketch.
pub(super) fn cache_bytes(case: &Case, rows: RowFormat, sketch: Option<Sketch>) -> f64 {
    let (shape, bytes) = (&case.shape, case.dtype.bytes());
    let count = 2 * shape.batch * shape.kv_heads * shape.seq_len;
    let kv = (count * rows.row_bits(shape.head_dim, bytes)) as f64 / 8.0;
    let share = sketch.map_or(0.0, |sketch| {
        sketch
            .bits()
            .map_or(1.0, |bits| bits as f64 / (8 * bytes) as f64)
    });
    kv + case.shape.kv_bytes(case.dtype) * share / 2.0
}

struct Dense(RowFormat);

impl Implementation for Dense {
    fn method(&self) -> MethodName {
        match self.0 {
            RowFormat::Float => MethodName::Dense,
            RowFormat::Int8 => MethodName::DenseInt8,
        }
    }

    fn transfers(&self, case: &Case) -> Transfers {
        let cache = case.shape.cache(case.dtype);
        Transfers::dense_rows(&cache, case.shape.seq_len, self.0)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, self.0, None)
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let caches = source.caches(self.0, None, sets)?;
        let q = source.q.clone();
        let whole: Calls = Box::new(move |set| {
            let cache = caches.sets[set].clone();
            Kept::output(ops::dense_decode(q.clone(), cache, &caches.spans))
        });
        let until = vec![];
        Ok(Prepared { whole, until })
    }
}

struct DenseBurn;

impl Implementation for DenseBurn {
    fn method(&self) -> MethodName {
        MethodName::DenseBurn
    }

    fn transfers(&self, case: &Case) -> Transfers {
        Dense(RowFormat::Float).transfers(case)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, RowFormat::Float, None) * case.shape.group_size() as f64
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
                // Checked before attention, for which burn would autotune kernel after kernel.
                check(k.clone())?;
                check(v.clone())?;
                Ok((k, v))
            })
            .collect::<Result<Vec<_>>>()?;
        let q = source.q.clone();
        let whole: Calls = Box::new(move |set| {
            let (k, v) = caches[set].clone();
            Kept::output(attention(q.clone(), k, v, None, None, Default::default()))
        });
        let until = vec![];
        Ok(Prepared { whole, until })
    }
}

struct Sparq(SparqConfig);

impl Implementation for Sparq {
    fn method(&self) -> MethodName {
        MethodName::Sparq
    }

    fn settings(&self) -> Option<SparqConfig> {
        Some(self.0)
    }

    fn transfers(&self, case: &Case) -> Transfers {
        let cache = case.shape.cache(case.dtype);
        Transfers::sparq(&cache, case.shape.seq_len, &self.0)
    }

    fn set_bytes(&self, case: &Case) -> f64 {
        cache_bytes(case, self.0.rows, Some(self.0.sketch))
    }

    fn prepare(&self, source: &Source, sets: usize) -> Result<Prepared> {
        let caches = Rc::new(source.caches(self.0.rows, Some(self.0.sketch), sets)?);
        let (q, config) = (source.q.clone(), self.0);
        let calls = |step: Prefix| -> Calls {
            let (q, caches) = (q.clone(), Rc::clone(&caches));
            Box::new(move |set| {
                let cache = caches.sets[set].clone();
                step(q.clone(), cache, &caches.spans, &config)
            })
        };
        Ok(Prepared {
            whole: calls(|q, cache, spans, config| {
                Kept::output(ops::sparq_decode(q, cache, spans, config))
            }),
            until: PREFIXES
                .iter()
                .map(|&(stage, prefix)| (stage, calls(prefix)))
                .collect(),
        })
    }
}
