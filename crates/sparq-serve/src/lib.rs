//! An HTTP server with OpenAI's API over models with SparQ attention.
//!
//! Three layers, each of which knows the types of the one before it only:
//!
//! | layer | content |
//! |---|---|
//! | [`engine`] | one thread that owns the model: requests join and leave between decode steps |
//! | [`api`] | OpenAI's requests, responses and errors, as JSON |
//! | [`http`] | connections, routes, server-sent events, limits and keys |
//!
//! [`metrics`] counts for all of them. One thread computes and another one serves all connections:
//! the two share a queue of bounded length, and a channel per request.

pub mod api;
pub mod engine;
pub mod http;
pub mod metrics;
