//! Ending a generation from outside: [`CancelToken`].

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A switch that another thread or a signal handler turns to end a generation; clones are the same switch.
///
/// ```
/// # use sparq_models::text::CancelToken;
/// let token = CancelToken::new();
/// let elsewhere = token.clone();
/// elsewhere.cancel();
/// assert!(token.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A switch that is off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Turns the switch on.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Turns the switch off, for the next generation.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the switch is on.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
