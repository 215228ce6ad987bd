//! A matrix in blocks on a device: [`PackedWeight`].

use burn::backend::Dispatch;
use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::{Bytes, DType, Device, FloatDType, Int, Tensor, TensorData};

use super::BlockFormat;
use crate::SparqError;
use crate::ops::{SparqBackend, has_kernels};

/// A matrix [out, in] in blocks, which [`decode_linear`](crate::ops::decode_linear) multiplies by
/// without making floats of the whole matrix.
///
/// As a module it is a constant. Records do not contain it: they hold what training changes, and
/// the blocks come from a checkpoint. It never tracks gradients.
///
/// ```
/// use burn::tensor::{Bytes, Device, FloatDType};
/// use sparq::ops::{BlockFormat, PackedWeight};
///
/// // Two rows of 32 weights: scale 0.5 in f16, then the codes.
/// let block = |code: i8| [&[0x00, 0x38][..], &[code as u8; 32]].concat();
/// let bytes = Bytes::from_bytes_vec([block(4), block(-6)].concat());
/// let weight = PackedWeight::new(bytes, BlockFormat::Q8_0, [2, 32], &Device::default())?;
///
/// let rows = weight.dequantize(FloatDType::F32).into_data().to_vec::<f32>().unwrap();
/// assert_eq!((rows[0], rows[63]), (2.0, -3.0));
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// In the layout of the backend; see [`SparqBackend::store_blocks`].
    pub(in crate::ops) blocks: Tensor<1, Int>,
    pub(in crate::ops) format: BlockFormat,
    pub(in crate::ops) dims: [usize; 2],
}

impl PackedWeight {
    /// Moves the blocks of a matrix [out, in], row by row, to a device.
    ///
    /// A CPU reads `bytes` where they are, for example in a mapped file. On an autodiff device the
    /// blocks are on its inner device.
    ///
    /// # Errors
    /// [`SparqError::Value`] if a row is not whole blocks, or if `bytes` has not the size of the
    /// matrix.
    pub fn new(
        bytes: Bytes,
        format: BlockFormat,
        dims: [usize; 2],
        device: &Device,
    ) -> Result<Self, SparqError> {
        let expected = format.matrix_bytes(dims)?;
        if bytes.len() != expected {
            let expected = format!("{expected} ({format} {dims:?})");
            return Err(SparqError::value(
                "bytes of a weight",
                expected,
                bytes.len(),
            ));
        }
        let device = device.clone().without_autodiff();
        let blocks = device.memory_persistent_allocations(bytes, |bytes| {
            let bytes = upload(bytes, &device);
            let stored = Dispatch::store_blocks(bytes.into_dispatch(), format, dims);
            Tensor::from_dispatch(stored)
        });
        Ok(Self {
            blocks,
            format,
            dims,
        })
    }

    /// Returns the format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Returns [out, in].
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Returns the device of the blocks.
    pub fn device(&self) -> Device {
        self.blocks.device()
    }

    /// Returns the blocks of the matrix, row by row, in host memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let blocks = self.blocks.clone().into_dispatch();
        let bytes = Dispatch::restore_blocks(blocks, self.format, self.dims);
        let bytes = Tensor::<1, Int>::from_dispatch(bytes).into_data();
        let mut bytes = bytes.bytes().to_vec();
        // Words may end in padding.
        bytes.truncate(self.dims[0] * self.format.row_bytes(self.dims[1]));
        bytes
    }

    /// Returns the matrix [out, in] as floats.
    pub fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::dequantize_blocks(
            self.blocks.clone().into_dispatch(),
            self.format,
            self.dims,
            dtype,
        ))
    }

    /// Returns the rows `indices` of the matrix as floats, [indices, in]: the lookup of an
    /// embedding table.
    ///
    /// # Panics
    /// If an index is not below out, on CPUs. A GPU reads an arbitrary row.
    pub fn dequantize_rows(&self, indices: Tensor<1, Int>, dtype: FloatDType) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::dequantize_rows(
            self.blocks.clone().into_dispatch(),
            indices.without_autodiff().into_dispatch(),
            self.format,
            self.dims,
            dtype,
        ))
    }

    /// Returns the matrix of the rows `rows`, in this order.
    ///
    /// # Panics
    /// If a row is not below out.
    pub fn select_rows(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let (bytes, row_bytes) = (self.to_bytes(), self.format.row_bytes(self.dims[1]));
        let mut selected = Vec::new();
        let mut outputs = 0;
        for row in rows {
            selected.extend_from_slice(&bytes[row * row_bytes..][..row_bytes]);
            outputs += 1;
        }
        let dims = [outputs, self.dims[1]];
        let selected = Bytes::from_bytes_vec(selected);
        let new = Self::new(selected, self.format, dims, &self.device());
        new.expect("whole rows of a valid matrix")
    }
}

/// Moves bytes to a device: as they are on a CPU, and as little-endian words, padded with zeros,
/// for kernels. Not every GPU reads single bytes.
fn upload(bytes: Bytes, device: &Device) -> Tensor<1, Int> {
    if !has_kernels(device) {
        let len = bytes.len();
        let data = TensorData::from_bytes(bytes, [len], DType::U8);
        return Tensor::from_data(data, (device, DType::U8));
    }
    const WORD: usize = size_of::<u32>();
    let words = bytes.len().div_ceil(WORD);
    let bytes = match bytes.len().is_multiple_of(WORD) {
        true => bytes,
        false => {
            let mut padded = bytes.to_vec();
            padded.resize(words * WORD, 0);
            Bytes::from_bytes_vec(padded)
        }
    };
    let data = TensorData::from_bytes(bytes, [words], DType::U32);
    Tensor::from_data(data, (device, DType::U32))
}

impl Module for PackedWeight {
    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {}

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self
    }

    fn to_device(self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        if device == self.device() {
            return self;
        }
        let bytes = Bytes::from_bytes_vec(self.to_bytes());
        let moved = Self::new(bytes, self.format, self.dims, &device);
        moved.expect("the bytes of a valid matrix")
    }

    fn fork(self, device: &Device) -> Self {
        self.to_device(device)
    }

    fn collect_devices(&self, mut devices: Devices) -> Devices {
        let device = self.device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn train(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for PackedWeight {
    fn content(&self, content: Content) -> Option<Content> {
        let text = format!("{} {:?}", self.format, self.dims);
        content.add_formatted(&text).optional()
    }
}

impl ModuleDisplay for PackedWeight {}
