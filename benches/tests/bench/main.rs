//! Tests of the benchmarks: the program `sparq-bench` from outside, and the committed results.

mod planning;
mod program;
mod whole_models;
