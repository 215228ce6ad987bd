//! What can go wrong on a user's input.

/// An input that this crate refuses. Broken invariants panic instead.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SparqError {
    /// A hyper-parameter is out of its range.
    #[error("{field}: expected {expected}, found {found}; {advice}")]
    Config {
        /// The field of [`SparqConfig`](crate::SparqConfig).
        field: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: usize,
        /// What to change.
        advice: &'static str,
    },
    /// No pair (r, k) fits a budget.
    #[error(
        "no rank and top_k read as little as {ratio} of dense attention's bytes at {seq_len} positions of head_dim {head_dim}; expected a ratio in (0, 1] that leaves room for r = 1 and k = 1"
    )]
    Budget {
        /// The model's head_dim.
        head_dim: usize,
        /// The number of positions asked for.
        seq_len: usize,
        /// The share of dense attention's bytes asked for.
        ratio: f64,
    },
    /// A tensor does not have the shape that a cache or module expects.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// The expected shape; 0 stands for any size.
        expected: Vec<usize>,
        /// The shape given.
        found: Vec<usize>,
    },
    /// A value out of its range, or paddings and lengths that do not fit the batch or the cache.
    #[error("{what}: expected {expected}, found {found}")]
    Value {
        /// The argument.
        what: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A method needs a part of the cache that this cache was made without.
    #[error(
        "the cache holds {found} as key sketch, but the method {method} needs {expected}; make the cache for that method"
    )]
    MissingSketch {
        /// The method's name.
        method: &'static str,
        /// The sketch that it reads.
        expected: String,
        /// What the cache has.
        found: String,
    },
    /// A method needs the attention that positions have received, which this cache does not record.
    #[error(
        "the method {method} reads the attention that each position has received; call KvCache::record_attention before the prefill"
    )]
    MissingAttention {
        /// The method's name.
        method: &'static str,
    },
    /// The device can't hold a cache or module of this type.
    #[error("dtype: {device} can't compute in {dtype}; choose one of {supported}")]
    Dtype {
        /// The device.
        device: String,
        /// The type asked for.
        dtype: String,
        /// What the device can do.
        supported: String,
    },
    /// The device could not hand over a result that the host needs.
    #[error("the device could not hand over a result: {reason}")]
    Device {
        /// What the device says.
        reason: String,
    },
    /// A decode step does something that can't be replayed as a part of a recorded graph.
    #[error("captured step: {what} can't be recorded; run the step without capture")]
    NotCapturable {
        /// What it does.
        what: &'static str,
    },
    /// The device refused to record or to replay a decode step; what the step's buffers hold is lost.
    #[error("captured step: the device refused ({reason}); run the step without capture")]
    Capture {
        /// What the device says.
        reason: String,
    },
}
