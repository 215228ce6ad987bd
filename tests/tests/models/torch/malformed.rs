//! Malformed, truncated and malicious PyTorch files give errors that name the file. They cause no
//! panic, and no allocation of the sizes they claim.

use std::fs;

use sparq_models::checkpoint::{Checkpoint, CheckpointError};
use sparq_tests::{assert_contains, fixture};

use super::folder;
use super::writer::{Pickle, View, archive, file};

/// The remedy for a file with more than tensors.
const STATE_DICT_ALONE: &str = "save model.state_dict() alone";

/// Returns the error in opening these weights.
#[track_caller]
fn error(weights: &[u8]) -> String {
    let error = match Checkpoint::open(folder(weights).path()) {
        Err(error) => error,
        Ok(_) => panic!("was opened"),
    };
    let message = error.to_string();
    assert_contains(&message, &["pytorch_model.bin"]);
    use CheckpointError::{Dimensions, LfsPointer, Torch};
    assert!(
        matches!(error, Torch { .. } | Dimensions { .. } | LfsPointer { .. }),
        "{message}"
    );
    message
}

#[track_caller]
fn assert_error(weights: &[u8], parts: &[&str]) {
    assert_contains(&error(weights), parts);
}

fn from_torch(name: &str) -> Vec<u8> {
    fs::read(fixture(&format!("torch/{name}.bin"))).unwrap()
}

/// Returns a file with one tensor, after `change`.
fn one_tensor(change: impl FnOnce(&mut View)) -> Vec<u8> {
    let mut view = View::whole("FloatStorage", "0", &[2, 3]);
    change(&mut view);
    let pickle = Pickle::default().state_dict(&[("a".to_owned(), view)]);
    file(pickle, &[("0", &[0; 24])])
}

#[test]
fn valid_file_opens() {
    let checkpoint = Checkpoint::open(folder(&one_tensor(|_| ())).path()).unwrap();
    assert_eq!(checkpoint.entry("a").unwrap().shape, [2, 3]);
}

#[test]
fn unsupported_files_name_the_remedy() {
    let files: [(&str, &[&str]); 6] = [
        ("legacy", &["PyTorch before 1.6", "torch.save"]),
        ("permuted", &["tensor \"a\"", ".contiguous()"]),
        ("whole_module", &["torch.nn.modules", STATE_DICT_ALONE]),
        ("float8", &["_rebuild_tensor_v3"]),
        ("sparse", &["_rebuild_sparse_tensor"]),
        ("compressed", &["neither compressed nor encrypted"]),
    ];
    for (name, parts) in files {
        assert_error(&from_torch(name), parts);
    }
    let pointer = b"version https://git-lfs.github.com/spec/v1\n";
    assert_error(pointer, &["git lfs pull"]);
    assert_error(b"", &["expected a zip archive"]);
    assert_error(b"<html>", &["expected a zip archive", "<htm"]);
}

#[test]
fn pickles_that_call_functions_are_refused() {
    let calls = [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.hub", "load"),
    ];
    for (module, name) in calls {
        let call = Pickle::default()
            .global(module, name)
            .text("touch /tmp/x")
            .op(b"\x85R");
        let named = format!("{module}.{name}");
        assert_error(&file(call, &[]), &[&named, STATE_DICT_ALONE]);
    }
    // The same call in the form of protocol 4.
    let call = Pickle::default().text("os").text("system").op(b"\x93");
    assert_error(&file(call, &[]), &["os.system"]);
}

#[test]
fn truncated_files_are_refused() {
    for bytes in [from_torch("module"), one_tensor(|_| ())] {
        for length in 0..bytes.len() {
            error(&bytes[..length]);
        }
    }
}

#[test]
fn flipped_bytes_open_or_are_refused() {
    let bytes = from_torch("module");
    for place in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[place] ^= flip;
            if let Ok(checkpoint) = Checkpoint::open(folder(&bytes).path()) {
                let limit = 4 * bytes.len() as u64;
                assert!(checkpoint.num_bytes() <= limit, "byte {place}");
            }
        }
    }
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let outside = ["tensor \"a\"", "a part of 6 elements"];
    for number in [1, 7, 1 << 40, 1 << 61] {
        assert_error(&one_tensor(|view| view.offset = number), &outside);
        assert_error(&one_tensor(|view| view.shape[0] = 2 + number), &outside);
        assert_error(&one_tensor(|view| view.strides[0] = 3 + number), &outside);
        let elements = one_tensor(|view| view.elements = number);
        assert_error(&elements, &["tensor \"a\"", "in \"data/0\"", "24 bytes"]);
    }
    // u64::MAX is -1 in the pickle.
    let fields: [fn(&mut View); 5] = [
        |view| view.offset = u64::MAX,
        |view| view.shape[1] = u64::MAX,
        |view| view.strides[1] = u64::MAX,
        |view| view.elements = u64::MAX,
        |view| view.strides.truncate(1),
    ];
    for change in fields {
        assert_error(&one_tensor(change), &["another object"]);
    }
    let outside = one_tensor(|view| view.key = "../0".into());
    assert_error(&outside, &["data/../0", "no such file"]);
    let empty =
        one_tensor(|view| (view.shape, view.strides) = (vec![0, 1 << 40, 1 << 40], vec![0; 3]));
    assert_error(&empty, &["tensor \"a\""]);
}

#[test]
fn tensors_larger_than_the_file_are_refused() {
    // One row repeated by a stride of 0: a small file that claims many bytes.
    let repeated =
        |rows| one_tensor(|view| (view.shape, view.strides) = (vec![rows, 3], vec![0, 1]));
    assert!(Checkpoint::open(folder(&repeated(4)).path()).is_ok());
    let too_large = ["tensor \"a\"", "at most 4 times the bytes"];
    assert_error(&repeated(1 << 30), &too_large);
    let view = View::whole("FloatStorage", "0", &[1000]);
    let tied = |count| {
        let tensors: Vec<_> = (0..count)
            .map(|at| (at.to_string(), view.clone()))
            .collect();
        file(Pickle::default().state_dict(&tensors), &[("0", &[0; 4000])])
    };
    assert!(Checkpoint::open(folder(&tied(4)).path()).is_ok());
    assert_error(&tied(10), &["at most 4 times the bytes"]);
}

#[test]
fn pickles_that_exhaust_memory_are_refused() {
    let dims = vec![1; 100_000];
    let many_dims = one_tensor(|view| (view.shape, view.strides) = (dims.clone(), dims));
    assert_error(&many_dims, &["another object"]);
    let run = |pickle: &[u8]| file(Pickle(pickle.to_vec()), &[]);
    let many = |bytes: &[u8]| run(&bytes.repeat(3 << 20));
    assert_error(&many(b"N"), &["stack of at most"]);
    assert_error(&many(b"N0"), &["an instruction"]);
    let appends = [&b"]"[..], &b"Na".repeat(3 << 20)].concat();
    assert_error(&run(&appends), &["too many"]);
    assert_error(&run(&[b'('; 2000]), &["an instruction"]);
    let long = run(&vec![b'N'; 17 << 20]);
    assert_error(&long, &["data.pkl", "at most 16777216 bytes"]);
    // Deeply nested tuples, and a dictionary that contains itself.
    assert_error(&run(&b"\x85".repeat(100)), &["a value on the stack"]);
    let deep = Pickle::default().op(b")").op(&b"\x85".repeat(1 << 20));
    assert_error(&file(deep, &[]), &["a dictionary of tensors"]);
    let own = Pickle::default()
        .op(b"}q\x01")
        .text("state_dict")
        .op(b"h\x01s");
    assert_error(&file(own, &[]), &["a dictionary of tensors", "state_dict"]);
    // A length of 4 GiB without data.
    assert_error(&run(b"X\xff\xff\xff\xff"), &["4294967295 bytes"]);
}

#[test]
fn invalid_pickles_name_the_position() {
    let cases: [(&[u8], &str); 14] = [
        (b"", "a value on the stack"),
        (b"(t0", "an instruction"),
        (b"t", "a mark on the stack"),
        (b"N(", "a value on the stack"),
        (b"h\x07", "an entry of the memo"),
        (b"N)R", "a function"),
        (b"NN\x93", "two names"),
        (b"N)Q", "storage"),
        (b"NNs", "a value on the stack"),
        (b"NNNs", "a dictionary"),
        (b"}(Nu", "a value for each key"),
        (b"}Na", "a list"),
        (b"X\x01\0\0\0\xff", "UTF-8"),
        (b"cos", "1 bytes"),
    ];
    for (bytes, expected) in cases {
        let pickle = file(Pickle(bytes.to_vec()), &[]);
        assert_error(&pickle, &["of the pickle", expected]);
    }
    for empty in [b"N", b"}", b"]"] {
        let pickle = file(Pickle(empty.to_vec()), &[]);
        assert_error(&pickle, &["expected a dictionary of tensors, found none"]);
    }
}

#[test]
fn archives_unlike_those_of_torch_are_refused() {
    assert_error(&archive(&[("data/0", b"1234")]), &["data.pkl"]);
    assert_error(&archive(&[("a/data.pkl", b"}.")]), &["data.pkl"]);
    let twice = archive(&[("data.pkl", b"}."), ("data.pkl", b"}.")]);
    assert_error(&twice, &["two"]);
    let big_endian = archive(&[("data.pkl", b"}."), ("byteorder", b"big")]);
    assert_error(&big_endian, &["byteorder", "\"little\"", "\"big\""]);
    let long = archive(&[("data.pkl", b"}."), (&"n".repeat(600), b"")]);
    assert_error(&long, &["at most 512 bytes"]);
}
