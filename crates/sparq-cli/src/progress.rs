//! The bar that shows how far a long text has been read.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// From so many tokens on, reading takes long enough to wonder what is going on.
const WORTH_SHOWING: usize = 1024;

/// A bar for reading `tokens`, on standard error if that is a terminal.
pub fn reading(tokens: usize, out: Output) -> ProgressBar {
    // indicatif itself hides a bar where standard error is no terminal. A caller that wants JSON wants no bar either.
    let hidden = out.is_json() || tokens < WORTH_SHOWING;
    let target = if hidden {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(tokens as u64), target);
    if let Ok(style) =
        ProgressStyle::with_template("reading [{bar:30}] {pos}/{len} tokens ({eta} left)")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// A bar for `count` answers of an evaluation, on standard error if that is a terminal.
pub fn answers(count: usize, out: Output) -> ProgressBar {
    let target = if out.is_json() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(count as u64), target);
    if let Ok(style) =
        ProgressStyle::with_template("[{bar:30}] {pos}/{len} answers ({elapsed} gone, {eta} left)")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    bar
}
