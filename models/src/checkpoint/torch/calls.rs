//! The known calls in a pickle, and the objects that they make.

use safetensors::Dtype;

use super::super::{describe, formats::StoredType};
use super::{
    object::{Global, Id, Object, Objects, Storage, Tensor},
    pickle::{Fault, Result},
};

/// The most dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// The result of a call.
pub(super) enum Made<'a> {
    New(Object<'a>),
    /// One of the arguments.
    Known(Id),
}

impl<'a> Objects<'a> {
    /// Returns the storage that `about` describes.
    pub(super) fn storage(&self, about: Id) -> Option<Storage<'a>> {
        let &[kind, dtype, key, _location, elements] = self.items(about) else {
            return None;
        };
        let &Object::Global(Global::Storage(dtype)) = self.get(dtype) else {
            return None;
        };
        let storage = Storage {
            dtype,
            key: self.text(key)?,
            elements: self.count(elements)?,
        };
        (self.text(kind) == Some("storage")).then_some(storage)
    }

    /// Returns the result of a call.
    pub(super) fn call(&self, callable: Id, arguments: Id) -> Result<Made<'a>> {
        let &Object::Global(global) = self.get(callable) else {
            return Err(Fault::other("a function"));
        };
        let items = self.items(arguments);
        match global {
            Global::OrderedDict if items.is_empty() => Ok(Made::New(Object::Dict(Vec::new()))),
            Global::RebuildTensor => {
                let tensor = self.tensor(arguments).ok_or_else(|| {
                    Fault::other("_rebuild_tensor_v2 of (storage, offset, shape, strides, ...)")
                })?;
                Ok(Made::New(Object::Tensor(Box::new(tensor))))
            }
            Global::RebuildParameter => match *items {
                [data, ..] => Ok(Made::Known(data)),
                [] => Err(Fault::other("_rebuild_parameter of a tensor")),
            },
            Global::OrderedDict | Global::Storage(_) => Err(Fault::other(
                "a call that makes a tensor or an empty dictionary",
            )),
        }
    }

    fn tensor(&self, arguments: Id) -> Option<Tensor<'a>> {
        let &[storage, offset, shape, strides, ..] = self.items(arguments) else {
            return None;
        };
        let &Object::Storage(storage) = self.get(storage) else {
            return None;
        };
        let lengths = |id| {
            let items = self.items(id);
            let few = items.len() <= MAX_DIMS;
            let lengths = items.iter().map(|&item| self.count(item));
            few.then(|| lengths.collect::<Option<Vec<_>>>())?
        };
        let (shape, strides) = (lengths(shape)?, lengths(strides)?);
        let tensor = Tensor {
            storage,
            offset: self.count(offset)?,
            shape,
            strides,
        };
        (tensor.shape.len() == tensor.strides.len()).then_some(tensor)
    }
}

/// Returns the function or class that a pickle names. Unknown names are refused: Python would call
/// them, and they could do anything.
pub(super) fn global(module: &str, name: &str) -> Result<Global> {
    let dtype = match (module, name) {
        ("collections", "OrderedDict") => return Ok(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => return Ok(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => return Ok(Global::RebuildParameter),
        ("torch", "FloatStorage") => Dtype::F32,
        ("torch", "HalfStorage") => Dtype::F16,
        ("torch", "BFloat16Storage") => Dtype::BF16,
        ("torch", "DoubleStorage") => Dtype::F64,
        ("torch", "LongStorage") => Dtype::I64,
        ("torch", "IntStorage") => Dtype::I32,
        ("torch", "ShortStorage") => Dtype::I16,
        ("torch", "CharStorage") => Dtype::I8,
        ("torch", "ByteStorage") => Dtype::U8,
        ("torch", "BoolStorage") => Dtype::BOOL,
        _ => {
            return Err(Fault::new(
                "only dictionaries and tensors; save model.state_dict() alone",
                describe(&format!("{module}.{name}").into()),
            ));
        }
    };
    Ok(Global::Storage(StoredType::from(dtype)))
}
