//! Native implementations of [`SparqBackend`](crate::ops::SparqBackend), one per family of devices.

#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "flex")]
mod flex;
