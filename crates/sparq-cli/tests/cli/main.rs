//! Tests of the program `sparq`, which they start as a user does.
//!
//! One binary holds all tests, which keeps the build short. Run one module with
//! `cargo test --release --test cli convert::`.

/// A checkpoint of a few kilobytes, and ways to run the program.
mod support;

/// Every kind of bad input: exit code 2 and a message that names file, key, expected and found
/// value.
mod errors;
/// Help texts, completions and closed pipes.
mod help;

/// `sparq cache`: the folder, its contents, and what clearing deletes.
mod cache;
/// `sparq check`: reference cases, random cases and failures.
mod check;
/// `sparq convert`: results equal the source, and are complete or absent. Kills the program and
/// fills a disk.
mod convert;
/// `sparq demo` on a short context.
mod demo;
/// `sparq eval`: records, continuation after interruptions, refusals.
mod eval;
/// `sparq generate`: text, sampling and conversations.
mod generate;
/// Models from a local server in the role of the Hugging Face Hub.
mod hub;
/// `sparq inspect`: counts and budgets.
mod inspect;
/// `sparq logits`: prefill, decode steps and the reference logits of model families.
mod logits;
/// Models that do not fit into memory, prompts in parts, and the type of the weights.
mod memory;
/// `sparq plan`: predictions for a configuration and for evaluated methods.
mod plan;
/// `sparq attention` and `sparq report`, and the tables of docs/quality.md.
mod report;
/// `sparq serve`: requests, a signal, a kill and refusals.
mod serve;
