//! Reading a pickle without running it.

use std::collections::HashMap;

use super::super::{CheckpointError, source::Source};
use super::{
    calls::{Made, global},
    error,
    object::{Id, Object, Objects},
};

/// More than any file nests its values.
const MAX_MARKS: usize = 1000;

/// More than any pickle has on its stack or remembers: dictionaries are written a thousand entries at a time.
const MAX_HELD: usize = 1 << 20;

/// What `torch.save` makes of a dictionary of tensors: its objects, and which of them is the dictionary.
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

/// Why a pickle is not read.
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

    /// Another object than one that fits here.
    pub(super) fn other(expected: &str) -> Self {
        Self::new(expected, "another object")
    }
}

pub(super) type Result<T, E = Fault> = std::result::Result<T, E>;

/// The stack machine that a pickle is a program for.
struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    objects: Objects<'a>,
    stack: Vec<Id>,
    /// Heights of the stack where a sequence of values begins.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// The instructions are those that Python writes in protocols 2 to 5, as far as values of a checkpoint need them.
    fn run(&mut self) -> Result<Id> {
        loop {
            match self.byte()? {
                // PROTO, FRAME: what version, and how far a reader may read ahead.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                // STOP
                b'.' => return self.pop(),

                // NONE, NEWTRUE, NEWFALSE, BINFLOAT
                b'N' | 0x88 | 0x89 => self.push(Object::Other)?,
                b'G' => {
                    self.take(8)?;
                    self.push(Object::Other)?;
                }
                // BININT, BININT1, BININT2, LONG1
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Object::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.byte()?;
                    self.push(Object::Int(number.into()))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Object::Int(number.into()))?;
                }
                0x8a => {
                    let length = self.byte()?;
                    let long = long(self.take(length.into())?);
                    self.push(long.map_or(Object::Other, Object::Int))?;
                }
                // BINUNICODE, SHORT_BINUNICODE
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.push_text(length as usize)?;
                }
                0x8c => {
                    let length = self.byte()?;
                    self.push_text(length.into())?;
                }

                // MARK
                b'(' if self.marks.len() < MAX_MARKS => self.marks.push(self.stack.len()),
                // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
                b')' => self.push(Object::Tuple(Vec::new()))?,
                b']' => self.push(Object::List)?,
                b'}' => self.push(Object::Dict(Vec::new()))?,
                // TUPLE, TUPLE1, TUPLE2, TUPLE3
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Object::Tuple(items))?;
                }
                count @ 0x85..=0x87 => {
                    let mut items = vec![];
                    for _ in 0x84..count {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Object::Tuple(items))?;
                }
                // APPEND, APPENDS
                b'a' => {
                    self.pop()?;
                    self.top_list()?;
                }
                b'e' => {
                    self.pop_to_mark()?;
                    self.top_list()?;
                }
                // SETITEM, SETITEMS
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }

                // BINPUT, LONG_BINPUT, MEMOIZE
                b'q' => {
                    let place = self.byte()?;
                    self.remember(place.into())?;
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.remember(place)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                // BINGET, LONG_BINGET
                b'h' => {
                    let place = self.byte()?;
                    self.recall(place.into())?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.recall(place)?;
                }

                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push(Object::Global(global(module, name)?))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let names = self.objects.text(module).zip(self.objects.text(name));
                    let (module, name) = names.ok_or_else(|| Fault::other("two names"))?;
                    self.push(Object::Global(global(module, name)?))?;
                }
                // BINPERSID
                b'Q' => {
                    let about = self.pop()?;
                    let storage = self.objects.storage(about);
                    let storage = storage.ok_or_else(|| {
                        Fault::other("(\"storage\", type, key, location, number of elements)")
                    })?;
                    self.push(Object::Storage(storage))?;
                }
                // REDUCE
                b'R' => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    match self.objects.call(callable, arguments)? {
                        Made::New(object) => self.push(object)?,
                        Made::Known(id) => self.push_id(id)?,
                    }
                }
                // BUILD: attributes of a dictionary, as the versions of its modules.
                b'b' => {
                    self.pop()?;
                    self.top()?;
                }
                instruction => {
                    return Err(Fault::new(
                        "an instruction that a dictionary of tensors needs; save model.state_dict() alone",
                        format!("\"{}\"", instruction.escape_ascii()),
                    ));
                }
            }
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

    /// The text up to the end of the line.
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

    fn push_text(&mut self, length: usize) -> Result<()> {
        let text = utf8(self.take(length)?)?;
        self.push(Object::Text(text))
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

    fn remember(&mut self, place: u32) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() == MAX_HELD {
            return Err(Fault::new(format!("at most {MAX_HELD} remembered"), "more"));
        }
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<()> {
        let known = self.memo.get(&place).copied();
        let id = known.ok_or_else(|| {
            Fault::new("what was remembered", format!("{place}, where nothing is"))
        })?;
        self.push_id(id)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    str::from_utf8(bytes).map_err(|_| Fault::new("UTF-8", "other bytes"))
}

/// The number that LONG1 writes: little-endian, two's complement, as few bytes as it takes.
fn long(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut number = [if negative { 0xff } else { 0 }; 8];
    number.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(number))
}
