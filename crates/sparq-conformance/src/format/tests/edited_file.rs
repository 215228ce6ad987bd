//! Edits of a reference case's file.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{Case, ConformanceError};

/// Three sequences, two of them padded: H = 4, d = 32, S = 96, r = 8, k = 16.
pub(super) const PADDED: &[u8] =
    include_bytes!("../../../fixtures/authors/19_mha_pad_finfo_min.safetensors");
/// One sequence with 4-bit codes: H = 4, d = 32, S = 200, r = 8, k = 48.
pub(super) const SKETCH: &[u8] =
    include_bytes!("../../../fixtures/sketch/00_b4_p_h4_kv4_d32_S200.safetensors");
pub(super) const NO_REALLOCATION: &[u8] =
    include_bytes!("../../../fixtures/authors/01_mha_r8_norealloc.safetensors");

/// The metadata and tensors of a file, to be edited and serialized again.
pub(super) struct EditedFile {
    pub(super) metadata: HashMap<String, String>,
    pub(super) tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl EditedFile {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let parts = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name, parts)
        });
        Self {
            metadata: header.metadata().clone().unwrap(),
            tensors: tensors.collect(),
        }
    }

    pub(super) fn entry(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    pub(super) fn bytes_at(mut self, tensor: &str, offset: usize, bytes: &[u8]) -> Self {
        let data = &mut self.tensors.get_mut(tensor).unwrap().2;
        data[offset..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(super) fn without_entry(mut self, key: &str) -> Self {
        self.metadata.remove(key);
        self
    }

    pub(super) fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.remove(name);
        self
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap()
    }

    pub(super) fn read(&self) -> Result<Case, ConformanceError> {
        Case::from_bytes("a.safetensors", &self.to_bytes())
    }

    pub(super) fn error(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}
