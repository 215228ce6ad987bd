//! Large pages for the buffers of a cache: a step reads rows all over them, and with small pages
//! the processor looks up an address for each few rows.

use burn::backend::Flex;
use burn::tensor::DType;

use super::element::Element;
use crate::ops::{CacheBuffers, RowBuffers, SketchBuffers};

/// Smaller buffers are left alone.
const MIN_BYTES: usize = 1 << 18;

/// Asks the system to back the buffers of an empty cache in type T with large pages. Only speed
/// depends on the answer.
pub(super) fn advise_large<T: Element>(cache: &mut CacheBuffers<Flex>) {
    for rows in [&mut cache.k, &mut cache.v] {
        match rows {
            RowBuffers::Float(rows) => advise(T::storage_mut(rows)),
            RowBuffers::Int8 { codes, scale } => {
                advise(codes.storage_mut::<u32>());
                advise(f32::storage_mut(scale));
            }
        }
    }
    match &mut cache.sketch {
        SketchBuffers::None => {}
        SketchBuffers::Full(kt) if T::slice(kt).is_some() => advise(T::storage_mut(kt)),
        SketchBuffers::Full(_) => {}
        SketchBuffers::Codes { codes, .. } if codes.dtype() == DType::U32 => {
            advise(codes.storage_mut::<u32>());
        }
        SketchBuffers::Codes { .. } => {}
    }
}

fn advise<T>(buffer: &mut [T]) {
    let bytes = size_of_val(buffer);
    if bytes >= MIN_BYTES {
        system::advise(buffer.as_mut_ptr().cast(), bytes);
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::c_void;

    /// The unit of the call. Where pages are larger, the call fails.
    const PAGE: usize = 4096;

    pub(super) fn advise(address: *mut c_void, bytes: usize) {
        // From the page that holds the start on, so that the areas of neighbours touch.
        let before = address.addr() % PAGE;
        let length = (before + bytes).next_multiple_of(PAGE);
        // SAFETY: the advice changes no contents, also of neighbours in the first and last page.
        unsafe {
            libc::madvise(
                address.wrapping_byte_sub(before),
                length,
                libc::MADV_HUGEPAGE,
            )
        };
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::ffi::c_void;

    pub(super) fn advise(_address: *mut c_void, _bytes: usize) {}
}
