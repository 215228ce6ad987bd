//! Handlers of Ctrl-C and SIGTERM.

use std::path::PathBuf;

use anyhow::{Context, Result};
use sparq_models::text::CancelToken;

/// The exit code of a program ended by Ctrl-C, the convention of shells.
pub const EXIT_CODE: u8 = 130;

/// Makes the first Ctrl-C cancel the returned token and the second end the program. Call it once.
pub fn install() -> Result<CancelToken> {
    let token = CancelToken::new();
    let switch = token.clone();
    handle(move || {
        // A prefill cannot be cancelled inside a layer, so the second Ctrl-C ends the program at
        // once.
        if switch.is_cancelled() {
            std::process::exit(i32::from(EXIT_CODE));
        }
        switch.cancel();
    })?;
    Ok(token)
}

/// Makes the first Ctrl-C call `stop` and the second end the program. Call it once.
pub fn stop_on_interrupt(stop: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut stop = Some(stop);
    handle(move || match stop.take() {
        Some(stop) => stop(),
        None => std::process::exit(i32::from(EXIT_CODE)),
    })
}

/// Makes Ctrl-C remove an unfinished folder and end the program. Call it once.
pub fn remove_on_interrupt(folder: PathBuf) -> Result<()> {
    handle(move || {
        // A folder that cannot be removed keeps its temporary name and is not a model.
        let _ = std::fs::remove_dir_all(&folder);
        std::process::exit(i32::from(EXIT_CODE));
    })
}

fn handle(handler: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(handler).context("Ctrl-C: cannot install a handler")
}
