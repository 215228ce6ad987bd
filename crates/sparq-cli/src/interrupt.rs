//! Ctrl-C: the first asks the generation to stop after the current token, the second ends the program.

use std::path::PathBuf;

use anyhow::{Context, Result};
use sparq_models::text::CancelToken;

/// The exit code of a program that a user ended with Ctrl-C, as shells give it.
pub const EXIT_CODE: u8 = 130;

/// Takes over Ctrl-C, which from then on turns the switch that this returns. To be called once.
///
/// # Errors
/// When the system refuses the handler.
pub fn install() -> Result<CancelToken> {
    let token = CancelToken::new();
    let switch = token.clone();
    ctrlc::set_handler(move || {
        // A prefill is not cancelled in the middle of a layer, so that someone in a hurry needs a way out.
        if switch.is_cancelled() {
            std::process::exit(i32::from(EXIT_CODE));
        }
        switch.cancel();
    })
    .context("Ctrl-C could not be taken over")?;
    Ok(token)
}

/// Takes over Ctrl-C, which from then on removes an unfinished folder and ends the program. To be called once.
///
/// # Errors
/// When the system refuses the handler.
pub fn remove_on_interrupt(folder: PathBuf) -> Result<()> {
    ctrlc::set_handler(move || {
        // What can't be removed is no model either.
        let _ = std::fs::remove_dir_all(&folder);
        std::process::exit(i32::from(EXIT_CODE));
    })
    .context("Ctrl-C could not be taken over")
}
