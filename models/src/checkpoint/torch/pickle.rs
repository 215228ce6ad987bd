//! Reads a pickle without calling anything that it names.

use std::collections::HashMap;

use super::super::{CheckpointError, source::Source};
use super::{
    calls::{Made, global},
    error,
    object::{Id, Object, Objects},
};

/// The most marks on the stack; real files nest less.
const MAX_MARKS: usize = 1000;

/// The most values on the stack and in the memo. Real files have fewer: Python writes dictionaries
/// a thousand entries at a time.
const MAX_HELD: usize = 1 << 20;

/// Reads a pickle of `torch.save`. Returns its objects, and which of them is the root.
pub(super) fn read<'a>(
    pickle: &'a [u8],
    source: &Source,
) -> Result<(Objects<'a>, Id), CheckpointError> {
    let mut machine = Machine {
        pickle,
        at: 0,
        objects: Objects::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let result = machine.run();
    result.map(|root| (machine.objects, root)).map_err(|fault| {
        let what = format!("byte {} of the pickle", machine.at);
        error(source, &what, fault.expected, fault.found)
    })
}

/// The reason why a pickle cannot be read.
pub(super) struct Fault {
    expected: String,
    found: String,
}

impl Fault {
    pub(super) fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// Creates the fault of an object of another kind than `expected`.
    pub(super) fn other(expected: &str) -> Self {
        Self::new(expected, "another object")
    }
}

pub(super) type Result<T, E = Fault> = std::result::Result<T, E>;

/// The stack machine whose program is a pickle.
struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    objects: Objects<'a>,
    stack: Vec<Id>,
    /// The heights of the stack where sequences of values begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs the pickle and returns the object that it ends with.
    ///
    /// The instructions are those that Python writes in protocols 2 to 5 for the values of a
    /// checkpoint. Their names are those of Python's `pickle.py`.
    fn run(&mut self) -> Result<Id> {
        const STOP: u8 = b'.';
        loop {
            let instruction = self.byte()?;
            if instruction == STOP {
                return self.pop();
            }
            match self.new_object(instruction)? {
                Some(object) => self.push(object)?,
                None => self.change(instruction)?,
            }
        }
    }

    /// Runs an instruction that makes an object; `None` for any other instruction.
    fn new_object(&mut self, instruction: u8) -> Result<Option<Object<'a>>> {
        Ok(Some(match instruction {
            // NONE, NEWTRUE, NEWFALSE, BINFLOAT
            b'N' | 0x88 | 0x89 => Object::Other,
            b'G' => self.take(8).map(|_| Object::Other)?,
            // BININT, BININT1, BININT2, LONG1
            b'J' => Object::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Object::Int(self.byte()?.into()),
            b'M' => Object::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let length = self.byte()?;
                long(self.take(length.into())?).map_or(Object::Other, Object::Int)
            }
            // BINUNICODE, SHORT_BINUNICODE
            b'X' => {
                let length = self.u32()?;
                Object::Text(utf8(self.take(length as usize)?)?)
            }
            0x8c => {
                let length = self.byte()?;
                Object::Text(utf8(self.take(length.into())?)?)
            }
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b')' => Object::Tuple(Vec::new()),
            b']' => Object::List,
            b'}' => Object::Dict(Vec::new()),
            // TUPLE, TUPLE1, TUPLE2, TUPLE3
            b't' => Object::Tuple(self.pop_to_mark()?),
            count @ 0x85..=0x87 => {
                let items = (0x84..count).map(|_| self.pop());
                let mut items = items.collect::<Result<Vec<_>>>()?;
                items.reverse();
                Object::Tuple(items)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Object::Global(global(module, name)?)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let names = self.objects.text(module).zip(self.objects.text(name));
                let (module, name) = names.ok_or_else(|| Fault::other("two names"))?;
                Object::Global(global(module, name)?)
            }
            // BINPERSID
            b'Q' => {
                let about = self.pop()?;
                let storage = self.objects.storage(about);
                Object::Storage(storage.ok_or_else(|| {
                    Fault::other("(\"storage\", type, key, location, number of elements)")
                })?)
            }
            _ => return Ok(None),
        }))
    }

    /// Runs an instruction that changes the stack, the memo, or an object on the stack.
    fn change(&mut self, instruction: u8) -> Result<()> {
        match instruction {
            // PROTO, FRAME: the version, and how far a reader may read ahead.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            // MARK
            b'(' if self.marks.len() < MAX_MARKS => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            // APPEND, APPENDS
            b'a' => {
                self.pop()?;
                self.top_list()
            }
            b'e' => {
                self.pop_to_mark()?;
                self.top_list()
            }
            // SETITEM, SETITEMS
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let place = self.byte()?;
                self.memoize(place.into())
            }
            b'r' => {
                let place = self.u32()?;
                self.memoize(place)
            }
            0x94 => self.memoize(self.memo.len() as u32),
            // BINGET, LONG_BINGET
            b'h' => {
                let place = self.byte()?;
                self.recall(place.into())
            }
            b'j' => {
                let place = self.u32()?;
                self.recall(place)
            }
            // REDUCE
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                match self.objects.call(callable, arguments)? {
                    Made::New(object) => self.push(object),
                    Made::Known(id) => self.push_id(id),
                }
            }
            // BUILD: attributes of a dictionary, such as the versions of its modules.
            b'b' => {
                self.pop()?;
                self.top().map(drop)
            }
            _ => Err(Fault::new(
                "an instruction for a dictionary of tensors; save model.state_dict() alone",
                format!("\"{}\"", instruction.escape_ascii()),
            )),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.pickle[self.at..];
        let (taken, _) = rest.split_at_checked(count).ok_or_else(|| {
            Fault::new(
                format!("{count} bytes"),
                format!("the end after {}", rest.len()),
            )
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads the text up to the end of the line.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.pickle[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.unwrap_or(rest.len()))?;
        self.take(1)?;
        utf8(line)
    }

    fn push(&mut self, object: Object<'a>) -> Result<()> {
        let id = self.objects.add(object);
        self.push_id(id.ok_or_else(|| Fault::new("fewer objects", "too many"))?)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() == MAX_HELD {
            return Err(Fault::new(format!("a stack of at most {MAX_HELD}"), "more"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Result<Id> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let values = self.stack.get(bottom..).unwrap_or_default();
        let top = values.last().copied();
        top.ok_or_else(|| Fault::new("a value on the stack", "none"))
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| Fault::new("a mark on the stack", "none"))?;
        Ok(self.stack.split_off(mark))
    }

    fn top_list(&self) -> Result<()> {
        match self.objects.get(self.top()?) {
            Object::List => Ok(()),
            _ => Err(Fault::other("a list")),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(Fault::new("a value for each key", "a key without one"));
        };
        let top = self.top()?;
        let Object::Dict(entries) = self.objects.get_mut(top) else {
            return Err(Fault::other("a dictionary"));
        };
        entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn memoize(&mut self, place: u32) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() == MAX_HELD {
            return Err(Fault::new(format!("a memo of at most {MAX_HELD}"), "more"));
        }
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<()> {
        let known = self.memo.get(&place).copied();
        let id = known.ok_or_else(|| {
            Fault::new("an entry of the memo", format!("{place}, which has none"))
        })?;
        self.push_id(id)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    str::from_utf8(bytes).map_err(|_| Fault::new("UTF-8", "other bytes"))
}

/// Decodes the number of LONG1: little-endian two's complement in as few bytes as possible. Returns
/// `None` if it does not fit into 64 bits.
fn long(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut number = [if negative { 0xff } else { 0 }; 8];
    number.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(number))
}
