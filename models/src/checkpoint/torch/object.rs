//! What a pickle makes: [`Object`].

use super::super::formats::StoredType;

/// More than any file has: a tensor takes some 25.
const MAX_OBJECTS: usize = 1 << 21;

/// An object by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

/// An object of a pickle, as far as a dictionary of tensors is made of it.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    /// Its items are not looked at.
    List,
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Box<Tensor<'a>>),
    /// A value that is neither of these, as a truth or a float.
    Other,
}

/// What a pickle may name of Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(StoredType),
}

/// Weights behind one another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) dtype: StoredType,
    /// The name of its file in the archive.
    pub(super) key: &'a str,
    pub(super) elements: u64,
}

/// A view of a storage; lengths are in elements.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// All objects of a pickle. They know one another by number, since they may be shared and even hold themselves.
#[derive(Default)]
pub(super) struct Objects<'a>(Vec<Object<'a>>);

impl<'a> Objects<'a> {
    /// Adds an object, unless there are too many.
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

    /// A number that counts something.
    pub(super) fn count(&self, id: Id) -> Option<u64> {
        match *self.get(id) {
            Object::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// The items of a tuple; nothing for another object.
    pub(super) fn items(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Object::Tuple(items) => items,
            _ => &[],
        }
    }

    /// The entries of a dictionary; nothing for another object.
    pub(super) fn entries(&self, id: Id) -> &[(Id, Id)] {
        match self.get(id) {
            Object::Dict(entries) => entries,
            _ => &[],
        }
    }
}
