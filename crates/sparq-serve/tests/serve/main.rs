//! Tests of the server, in one binary.
//!
//! | module | subject |
//! |---|---|
//! | `batching` | answers under load equal those of a session; queue, cancellation, failures |
//! | `prefix` | prompts that begin as an earlier one |
//! | `slots` | sequences that share a cache: growth, memory, sampling, windows, rows in 8 bits |
//! | `http` | routes, streams, errors, keys, limits, shutdown |
//! | `schema` | answers that follow a JSON schema |
//! | `load` | many clients, some of which hang up |
//! | `support` | an engine and a server on the embedded model, and a client |

mod batching;
mod http;
mod load;
mod prefix;
mod schema;
mod slots;
mod support;
