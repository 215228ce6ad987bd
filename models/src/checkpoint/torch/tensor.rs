//! Locates the view of a storage in the file.

use super::super::{
    CheckpointError,
    decode::{Layout, Stored},
    formats::StoredType,
};
use super::{
    archive::{Archive, Entry},
    error,
    object::Tensor,
};

impl Tensor<'_> {
    /// Returns the place and layout of the tensor `name` in the file, checked against its storage.
    pub(super) fn locate(
        &self,
        name: &str,
        archive: &Archive<'_>,
    ) -> Result<Stored, CheckpointError> {
        let malformed = |expected: String, found: String| {
            let what = format!("tensor \"{name}\"");
            error(archive.source(), &what, expected, found)
        };
        let storage = &self.storage;
        let file = format!("data/{}", storage.key);
        let missing = || malformed(format!("its weights in \"{file}\""), "no such file".into());
        let Entry { start, bytes } = archive.entry(&file).ok_or_else(missing)?;
        let size = bytes_of(storage.dtype);
        if storage.elements.checked_mul(size) != Some(bytes) {
            let expected = format!("{} {} in \"{file}\"", storage.elements, storage.dtype);
            return Err(malformed(expected, format!("{bytes} bytes")));
        }
        let view = || {
            format!(
                "shape {:?} at offset {}, strides {:?}",
                self.shape, self.offset, self.strides
            )
        };
        let Some(count) = self.count_inside() else {
            let expected = format!("a part of {} elements", storage.elements);
            return Err(malformed(expected, view()));
        };
        let layout = self.layout().ok_or_else(|| {
            let expected =
                "a row-major or column-major layout; save the tensor after .contiguous()";
            malformed(expected.into(), view())
        })?;
        Ok(Stored {
            dtype: storage.dtype,
            // Dimensions that do not fit are refused when the checkpoint adds the tensor.
            shape: self
                .shape
                .iter()
                .map(|&size| usize::try_from(size).unwrap_or(usize::MAX))
                .collect(),
            offset: start + self.offset * size,
            bytes: count * size,
            layout,
            checksum: None,
            within: None,
        })
    }

    /// Returns the number of elements, if all of them lie in the storage.
    fn count_inside(&self) -> Option<u64> {
        let count = self
            .shape
            .iter()
            .try_fold(1_u64, |count, &size| count.checked_mul(size))?;
        let extents = self.shape.iter().zip(&self.strides);
        let end = match count {
            0 => Some(self.offset),
            _ => extents
                .map(|(&size, &stride)| (size - 1).checked_mul(stride))
                .try_fold(self.offset.checked_add(1)?, |end, extent| {
                    end.checked_add(extent?)
                }),
        };
        // Strides of 0 can give more elements than the storage has.
        let bytes = count.checked_mul(bytes_of(self.storage.dtype))?;
        (end? <= self.storage.elements && isize::try_from(bytes).is_ok()).then_some(count)
    }

    fn layout(&self) -> Option<Layout> {
        let (shape, strides) = (&*self.shape, &*self.strides);
        if is_contiguous(shape, strides) {
            return Some(Layout::Rows);
        }
        match (shape, strides) {
            (&[rows, _], &[1, stride]) if stride == rows => Some(Layout::Columns),
            ([_, row @ ..], [stride, inner @ ..]) if is_contiguous(row, inner) => {
                let stride = usize::try_from(*stride).ok()?;
                Some(Layout::SpacedRows { stride })
            }
            _ => None,
        }
    }
}

/// Returns whether the elements are contiguous, the last dimension first. Strides of dimensions of
/// size 1 do not matter.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}

fn bytes_of(dtype: StoredType) -> u64 {
    match dtype {
        StoredType::Other(dtype) => dtype.bitsize() as u64 / 8,
        // A pickle only names types of one element per block.
        _ => dtype.bytes(&[1]).unwrap_or(1) as u64,
    }
}
