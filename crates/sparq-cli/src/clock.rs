//! The time since this program began, for the statistics of a start.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static BEGAN: OnceLock<(Instant, SystemTime)> = OnceLock::new();

/// Marks the beginning, if called first.
pub fn begin() {
    began();
}

/// Returns the time since the beginning.
pub fn elapsed() -> Duration {
    began().0.elapsed()
}

/// Returns the beginning in seconds since 1970, which the process that started this one can compare
/// with its own clock.
pub fn began_unix_seconds() -> f64 {
    let since = began().1.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn began() -> &'static (Instant, SystemTime) {
    BEGAN.get_or_init(|| (Instant::now(), SystemTime::now()))
}
