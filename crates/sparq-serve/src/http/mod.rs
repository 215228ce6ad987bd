//! The server: connections, routes, limits and keys.
//!
//! HTTP/1.1 with a thread per connection: their number is bounded, and all wait for the one thread
//! that computes. A client that leaves ends its request at the next step.

mod answer;
mod connection;
mod keys;
mod message;
mod routes;
mod server;

pub use keys::ApiKeys;
pub use server::{Server, ServerConfig, ServerHandle, ServerModel};
