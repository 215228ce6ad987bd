//! Writes files in the format of `torch.save`.

use std::io::Write;

use rawzip::ZipArchiveWriter;

/// A pickle under construction, with the instructions that PyTorch writes.
#[derive(Clone, Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn text(self, text: &str) -> Self {
        let length = text.len() as u32;
        self.op(b"X").op(&length.to_le_bytes()).op(text.as_bytes())
    }

    pub fn number(self, number: u64) -> Self {
        self.op(b"\x8a\x08").op(&number.to_le_bytes())
    }

    pub fn numbers(self, numbers: &[u64]) -> Self {
        let open = self.op(b"(");
        numbers
            .iter()
            .fold(open, |pickle, &number| pickle.number(number))
            .op(b"t")
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn tensor(self, view: &View) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .text("storage")
            .global("torch", view.storage)
            .text(&view.key)
            .text("cpu")
            .number(view.elements)
            .op(b"tQ")
            .number(view.offset)
            .numbers(&view.shape)
            .numbers(&view.strides)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    /// Appends a dictionary of tensors.
    pub fn state_dict(self, tensors: &[(String, View)]) -> Self {
        let open = self.op(b"}(");
        let write = |pickle: Self, (name, view): &(String, View)| pickle.text(name).tensor(view);
        tensors.iter().fold(open, write).op(b"u")
    }
}

/// The description of a tensor in a pickle.
#[derive(Clone)]
pub struct View {
    pub storage: &'static str,
    pub key: String,
    pub elements: u64,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

impl View {
    /// Returns the view of the whole storage `key`, in row-major order.
    pub fn whole(storage: &'static str, key: &str, shape: &[u64]) -> Self {
        let strides = (1..=shape.len()).map(|at| shape[at..].iter().product());
        Self {
            storage,
            key: key.into(),
            elements: shape.iter().product(),
            offset: 0,
            shape: shape.into(),
            strides: strides.collect(),
        }
    }
}

/// Returns an uncompressed archive with these files in the folder `model`.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (name, bytes) in files {
        let (mut entry, config) = archive.new_file(&*format!("model/{name}")).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        writer.write_all(bytes).unwrap();
        let (_, written) = writer.finish().unwrap();
        entry.finish(written).unwrap();
    }
    archive.finish().unwrap()
}

/// Returns a file with these storages and this pickle, whose end instruction is added.
pub fn file(pickle: Pickle, storages: &[(&str, &[u8])]) -> Vec<u8> {
    let pickle = Pickle(b"\x80\x02".to_vec()).op(&pickle.0).op(b".").0;
    let names: Vec<_> = storages
        .iter()
        .map(|(key, _)| format!("data/{key}"))
        .collect();
    let data = names
        .iter()
        .zip(storages)
        .map(|(name, (_, bytes))| (&**name, *bytes));
    let mut files = vec![("data.pkl", &*pickle), ("byteorder", b"little")];
    files.extend(data);
    files.push(("version", b"3\n"));
    archive(&files)
}
