//! The objects that a pickle makes: [`Object`].

use super::super::formats::StoredType;

/// The most objects in a pickle. A tensor takes about 25.
const MAX_OBJECTS: usize = 1 << 21;

/// The number of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

/// An object of a pickle, as far as a dictionary of tensors needs it.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    /// A list. Its items are not kept.
    List,
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Box<Tensor<'a>>),
    /// Any other value, such as a boolean or a float.
    Other,
}

/// A function or class of Python that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and similar classes.
    Storage(StoredType),
}

/// A range of contiguous elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) dtype: StoredType,
    /// The name of its file in the archive.
    pub(super) key: &'a str,
    pub(super) elements: u64,
}

/// A view of a storage. Its offset and strides count elements.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// All objects of a pickle. They refer to each other by number, since they may be shared and may
/// contain themselves.
#[derive(Default)]
pub(super) struct Objects<'a>(Vec<Object<'a>>);

impl<'a> Objects<'a> {
    /// Adds an object. Returns `None` if there are too many.
    pub(super) fn add(&mut self, object: Object<'a>) -> Option<Id> {
        let id = Id(self.0.len() as u32);
        (self.0.len() < MAX_OBJECTS).then(|| self.0.push(object))?;
        Some(id)
    }

    pub(super) fn get(&self, id: Id) -> &Object<'a> {
        &self.0[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Object<'a> {
        &mut self.0[id.0 as usize]
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match *self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns an integer that is not negative.
    pub(super) fn count(&self, id: Id) -> Option<u64> {
        match *self.get(id) {
            Object::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// Returns the items of a tuple; none for another object.
    pub(super) fn items(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Object::Tuple(items) => items,
            _ => &[],
        }
    }

    /// Returns the entries of a dictionary; none for another object.
    pub(super) fn entries(&self, id: Id) -> &[(Id, Id)] {
        match self.get(id) {
            Object::Dict(entries) => entries,
            _ => &[],
        }
    }
}
