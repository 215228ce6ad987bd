//! A shape with the settings that are compared on it.

use sparq::SparqConfig;

use crate::shape::{CacheType, Shape};

/// One shape with all settings that are compared on it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The shape.
    pub shape: Shape,
    /// The element type of K and V.
    pub dtype: CacheType,
    /// SparQ's settings.
    pub settings: Vec<SparqConfig>,
    /// The layers of which the first selects positions for all; `None` if that is not measured.
    pub sharing: Option<usize>,
}

/// Limits on the cases to measure, since device time is expensive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scope {
    /// Calls are also timed eagerly if K and V have at most this many bytes. In longer calls the
    /// time of the launches does not show.
    pub eager_bytes: f64,
    /// burn's dense attention is timed if K and V, expanded to all heads, have at most this many
    /// bytes.
    pub dense_burn_bytes: f64,
}

impl Scope {
    /// No limits.
    pub const ALL: Scope = Scope {
        eager_bytes: f64::INFINITY,
        dense_burn_bytes: f64::INFINITY,
    };

    /// On a GPU only captured calls, and this project's methods only.
    pub const CAPTURED: Scope = Scope {
        eager_bytes: 0.0,
        dense_burn_bytes: 0.0,
    };
}
