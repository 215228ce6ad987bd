//! Tensors in host memory.

/// A dense row-major tensor in host memory. The number of elements is the product of the shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<T> {
    shape: Vec<usize>,
    values: Vec<T>,
}

impl<T> Array<T> {
    /// Returns a tensor, or `None` if the number of `values` does not match `shape`.
    pub fn new(shape: Vec<usize>, values: Vec<T>) -> Option<Self> {
        let elements = shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))?;
        (elements == values.len()).then_some(Self { shape, values })
    }

    /// Returns the size of every dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the elements, with the last dimension contiguous.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// Returns the rows along the last dimension, or none if that dimension is empty.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, T> {
        self.values
            .chunks_exact(self.shape.last().copied().unwrap_or(1).max(1))
    }

    /// Returns a tensor of the same shape with `f` applied to every element.
    pub fn map<U>(&self, f: impl FnMut(&T) -> U) -> Array<U> {
        Array {
            shape: self.shape.clone(),
            values: self.values.iter().map(f).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Array;

    #[test]
    fn mismatched_shapes_are_refused() {
        assert!(Array::new(vec![2, 3], vec![0.0f32; 6]).is_some());
        assert!(Array::new(vec![2, 3], vec![0.0f32; 5]).is_none());
        assert!(Array::new(vec![usize::MAX, 2], vec![0u8; 1]).is_none());
    }

    #[test]
    fn rows_run_along_the_last_dimension() {
        let array = Array::new(vec![2, 1, 2], vec![1, 2, 3, 4]).unwrap();
        assert_eq!(array.rows().collect::<Vec<_>>(), [[1, 2], [3, 4]]);
    }
}
