//! The errors of this crate.

/// An input that this crate refuses. Broken invariants panic instead.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SparqError {
    /// A hyper-parameter is out of its range.
    #[error("{field}: expected {expected}, found {found}; {advice}")]
    Config {
        /// The field of the configuration, for example of [`SparqConfig`](crate::SparqConfig).
        field: &'static str,
        /// The values allowed.
        expected: String,
        /// The value given.
        found: usize,
        /// The change that makes it valid.
        advice: &'static str,
    },
    /// No rank and top_k fit a budget.
    #[error(
        "no rank and top_k fit in {ratio} of dense attention's bytes at {seq_len} positions of head_dim \
         {head_dim}; expected a ratio in (0, 1] that allows at least rank 1 and top_k 1"
    )]
    Budget {
        /// The model's head_dim.
        head_dim: usize,
        /// The number of positions.
        seq_len: usize,
        /// The requested share of dense attention's bytes.
        ratio: f64,
    },
    /// A tensor does not have the shape that a cache or module expects.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// The expected shape. 0 stands for any size.
        expected: Vec<usize>,
        /// The shape given.
        found: Vec<usize>,
    },
    /// A value is out of its range, or paddings and lengths do not fit the batch or the cache.
    #[error("{what}: expected {expected}, found {found}")]
    Value {
        /// The argument.
        what: &'static str,
        /// The values allowed.
        expected: String,
        /// The value given.
        found: String,
    },
    /// A method reads a key sketch that the cache does not hold.
    #[error(
        "the method {method} needs {expected} as key sketch, but the cache holds {found}; create the \
         cache for this method"
    )]
    MissingSketch {
        /// The method's name.
        method: &'static str,
        /// The sketch that the method reads.
        expected: String,
        /// The sketch of the cache.
        found: String,
    },
    /// A method reads the attention received by each position, which the cache does not record.
    #[error(
        "the method {method} reads the attention that each position has received; call \
         KvCache::record_attention before the prefill"
    )]
    MissingAttention {
        /// The method's name.
        method: &'static str,
    },
    /// The device does not support the type of a cache or module.
    #[error("dtype: {device} does not support {dtype}; choose one of {supported}")]
    Dtype {
        /// The device.
        device: String,
        /// The requested type.
        dtype: String,
        /// The types that the device supports.
        supported: String,
    },
    /// A result could not be read back from the device.
    #[error("failed to read a result from the device: {reason}")]
    Device {
        /// The device's error.
        reason: String,
    },
    /// A decode step contains an operation that cannot be part of a captured graph.
    #[error("captured step: {what} can't be captured; run the step without capture")]
    NotCapturable {
        /// The operation.
        what: &'static str,
    },
    /// The device failed to capture or to replay a decode step. The contents of its buffers are
    /// lost.
    #[error("captured step: the device failed ({reason}); run the step without capture")]
    Capture {
        /// The device's error.
        reason: String,
    },
}

impl SparqError {
    /// [`SparqError::Config`] of these parts.
    pub(crate) fn config(
        field: &'static str,
        expected: impl Into<String>,
        found: usize,
        advice: &'static str,
    ) -> Self {
        SparqError::Config {
            field,
            expected: expected.into(),
            found,
            advice,
        }
    }

    /// [`SparqError::Shape`] of these parts.
    pub(crate) fn shape(
        what: &'static str,
        expected: impl Into<Vec<usize>>,
        found: impl Into<Vec<usize>>,
    ) -> Self {
        SparqError::Shape {
            what,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// [`SparqError::Value`] of these parts.
    pub(crate) fn value(
        what: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        SparqError::Value {
            what,
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}
