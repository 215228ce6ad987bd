//! Progress bars on standard error.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sparq_eval::steps;
use sparq_models::{CausalLm, ModelCache};

use crate::output::Output;

/// The number of tokens from which reading takes long enough for a bar.
const MIN_TOKENS: usize = 1024;

/// Makes a bar for reading tokens.
pub fn reading(tokens: usize, out: Output) -> ProgressBar {
    let style = "reading [{bar:30}] {pos}/{len} tokens ({eta} left)";
    bar(tokens, style, out.is_json() || tokens < MIN_TOKENS)
}

/// Makes a bar for the answers of an evaluation.
pub fn answers(count: usize, out: Output) -> ProgressBar {
    let style = "[{bar:30}] {pos}/{len} answers ({elapsed} elapsed, {eta} left)";
    let bar = bar(count, style, out.is_json());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Reads the tokens of one sequence into the cache and shows a bar meanwhile.
pub fn read(
    model: &dyn CausalLm,
    cache: &mut ModelCache,
    tokens: &[u32],
    out: Output,
) -> Result<()> {
    let bar = reading(tokens.len(), out);
    steps::read(model, cache, tokens, &|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(())
}

/// Makes a bar, which indicatif hides if standard error is not a terminal.
fn bar(length: usize, style: &str, hidden: bool) -> ProgressBar {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(length as u64), target);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
