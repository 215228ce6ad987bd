//! Loads that CUDA's assembler keeps where they are.
//!
//! It moves a load down to its first use to save registers, so that few loads are in flight: two of
//! the sixteen that a unit issues at once for a product. It may do so with every load from a buffer
//! that the kernel does not write, across any fence. An ordinary load stays before a fence.

use cubecl::prelude::*;

/// Sixteen bytes.
pub(crate) type Words = Vector<u32, Const<4>>;

/// Loads a vector of 16 bytes, before the next [`issue_loads`]. Only for CUDA.
#[cube]
pub(crate) fn load_words<E: Scalar, N: Size>(source: &[Vector<E, N>], at: usize) -> Words {
    let from = source[at..at + 1].as_ptr();
    let words: Words;
    gpu_asm!("ld.global.v4.u32 {words}, [{from}];", words = out(_) words, from = in(_) from);
    words
}

/// Issues all [`load_words`] before it, whose results are used after it.
#[cube]
pub(crate) fn issue_loads() {
    gpu_asm!("fence.acq_rel.cta;");
}
