//! What the programs share: naming a device, and writing a file whole or not at all.
#![deny(missing_docs)]

pub mod device;
pub mod files;
