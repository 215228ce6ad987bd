//! The server: connections, routes, limits and keys.
//!
//! HTTP/1.1 by `axum` and `hyper`, on one thread beside the one that computes. A client that leaves
//! ends its request at the next step: its response is dropped, and with it the
//! [`Generation`](crate::engine::Generation).

mod answer;
mod body;
mod keys;
mod response;
mod routes;
mod server;
mod write_limit;

pub use keys::ApiKeys;
pub use server::{Server, ServerConfig, ServerHandle, ServerModel};
