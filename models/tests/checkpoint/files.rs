//! Opening checkpoints: supported layouts, and malformed ones, whose errors name the file and key.

use std::{fs, path::Path};

use burn::tensor::{Device, FloatDType};

use crate::support::{
    assert_contains, checkpoint, f32_bytes, fixture, folder, safetensors, with_header,
};
use safetensors::Dtype;
use sparq_models::checkpoint::{Checkpoint, CheckpointError, JsonError, StoredType};

/// Returns the error of opening `dir`, which has to mention all of `parts`.
#[track_caller]
fn error(dir: &Path, parts: &[&str]) -> CheckpointError {
    let error = Checkpoint::open(dir).map(|_| ()).unwrap_err();
    assert_contains(&error.to_string(), parts);
    error
}

fn one_tensor() -> Vec<u8> {
    safetensors(&[("a", Dtype::F32, &[2, 3], f32_bytes(&[0.0; 6]))])
}

#[test]
fn single_file_opens() {
    let checkpoint = Checkpoint::open(&fixture("llama3")).unwrap();
    assert_eq!(checkpoint.config()["model_type"], "llama");
    assert!(checkpoint.contains("model.norm.weight"));
    assert!(!checkpoint.contains("model.norm.bias"));
    let entry = checkpoint.entry("model.embed_tokens.weight").unwrap();
    assert_eq!(entry.dtype, StoredType::F32);
    assert_eq!(entry.shape, [96, 32]);
    assert_eq!(entry.file, fixture("llama3").join("model.safetensors"));
    assert_eq!(checkpoint.dir(), Some(&*fixture("llama3")));
}

#[test]
fn shards_open_as_one_checkpoint() {
    let checkpoint = Checkpoint::open(&fixture("llama2")).unwrap();
    // 3 layers of 9 tensors, the embedding, the norm and the output projection. The number of
    // weights is from the index.
    assert_eq!(checkpoint.names().count(), 3 * 9 + 3);
    assert_eq!(checkpoint.num_params(), 37_088);
    assert_eq!(checkpoint.num_bytes(), 148_352);
    let head = checkpoint.entry("lm_head.weight").unwrap();
    assert!(head.file.ends_with("model-00003-of-00003.safetensors"));
}

#[test]
fn only_safetensors_file_may_have_any_name() {
    let weights = one_tensor();
    let dir = folder(&[("config.json", b"{}"), ("llama.safetensors", &weights)]);
    assert!(Checkpoint::open(dir.path()).unwrap().contains("a"));
    fs::write(dir.path().join("other.safetensors"), &weights).unwrap();
    error(dir.path(), &["found llama.safetensors, other.safetensors"]);
}

#[test]
fn missing_folder_is_named() {
    let error = error(Path::new("/no/such/folder"), &["/no/such/folder"]);
    assert!(matches!(error, CheckpointError::MissingFolder { .. }));
}

#[test]
fn file_instead_of_folder_is_named() {
    let dir = checkpoint(&one_tensor());
    let file = dir.path().join("model.safetensors");
    let error = error(&file, &["expected a folder", "found a file"]);
    assert!(matches!(error, CheckpointError::NotAFolder { .. }));
}

#[test]
fn missing_config_or_weights_are_named() {
    let dir = folder(&[("model.safetensors", &one_tensor())]);
    assert!(matches!(
        error(dir.path(), &["config.json", "no such file"]),
        CheckpointError::Json(JsonError::Missing { .. })
    ));
    let dir = folder(&[("config.json", b"{}")]);
    error(dir.path(), &["model.safetensors", "no file of weights"]);
    let dir = folder(&[("config.json", b"{}"), ("consolidated.00.pth", b"x")]);
    let other = "found consolidated.00.pth";
    error(dir.path(), &["pytorch_model.bin", other]);
    let shard = "model-00001-of-00002.safetensors";
    let dir = folder(&[("config.json", b"{}"), (shard, &one_tensor())]);
    error(dir.path(), &["found model-00001-of-00002.safetensors"]);
}

#[test]
fn folder_instead_of_file_is_named() {
    for name in ["config.json", "model.safetensors"] {
        let dir = checkpoint(&one_tensor());
        fs::remove_file(dir.path().join(name)).unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        error(dir.path(), &[name, "expected a file", "found a folder"]);
    }
}

#[test]
fn config_that_is_not_json_is_named() {
    let nested = "[".repeat(100_000);
    for config in ["", "{", "{\"a\": }", "\u{0}", &nested] {
        let dir = checkpoint(&one_tensor());
        fs::write(dir.path().join("config.json"), config).unwrap();
        assert!(matches!(
            error(dir.path(), &["config.json", "not valid JSON"]),
            CheckpointError::Json(JsonError::Syntax { .. })
        ));
    }
}

#[test]
fn truncated_file_is_refused() {
    let weights = one_tensor();
    for len in 0..weights.len() {
        let dir = checkpoint(&weights[..len]);
        let parts = ["model.safetensors", "not a complete safetensors file"];
        let error = error(dir.path(), &parts);
        assert!(matches!(error, CheckpointError::Header { .. }));
    }
    let longer = checkpoint(&[&weights[..], &[0]].concat());
    error(longer.path(), &["expected 24 bytes", "found 25"]);
}

#[test]
fn header_length_is_checked_before_allocation() {
    for length in [1 << 63, u64::MAX, u64::MAX - 7, 1 << 40, 1000] {
        let mut weights = one_tensor();
        weights[..8].copy_from_slice(&u64::to_le_bytes(length));
        error(checkpoint(&weights).path(), &[&length.to_string()]);
    }
}

#[test]
fn inconsistent_headers_are_refused() {
    let max = usize::MAX;
    let cases = [
        "".to_string(),
        "[]".into(),
        "{".into(),
        "\u{7f}".into(),
        r#"{"a": 1}"#.into(),
        r#"{"a": {"dtype": "F32", "shape": [2]}}"#.into(),
        // An unknown type.
        r#"{"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}"#.into(),
        // Shape and length disagree.
        r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}"#.into(),
        r#"{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}"#.into(),
        // Reversed offsets, a gap before, an end beyond the file, a gap after.
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#.into(),
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#.into(),
        r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#.into(),
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#.into(),
        // Two tensors at the same place, and two that overlap.
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#
            .into(),
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#
            .into(),
        // Products and offsets that overflow.
        format!(r#"{{"a": {{"dtype": "F32", "shape": [{max}, {max}], "data_offsets": [0, 8]}}}}"#),
        format!(r#"{{"a": {{"dtype": "F32", "shape": [{max}], "data_offsets": [0, 8]}}}}"#),
        format!(r#"{{"a": {{"dtype": "F32", "shape": [2], "data_offsets": [{max}, 8]}}}}"#),
        format!(r#"{{"a": {{"dtype": "U8", "shape": [{max}], "data_offsets": [0, {max}]}}}}"#),
        r#"{"a": {"dtype": "F32", "shape": [99999999999999999999999], "data_offsets": [0, 8]}}"#
            .into(),
        "[".repeat(100_000),
    ];
    for header in cases {
        let dir = checkpoint(&with_header(&header, &[0; 8]));
        let head: String = header.chars().take(200).collect();
        match Checkpoint::open(dir.path()) {
            Err(CheckpointError::Header { .. }) => {}
            other => panic!("{head}: {other:?}"),
        }
    }
    // The same bytes open with a correct header.
    let header = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
    assert!(Checkpoint::open(checkpoint(&with_header(header, &[0; 8])).path()).is_ok());
}

#[test]
fn overflowing_dimensions_are_refused() {
    for shape in [
        "[0, 1152921504606846976]",
        "[0, 1099511627776, 1099511627776]",
    ] {
        let header =
            format!(r#"{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 0]}}}}"#);
        let dir = checkpoint(&with_header(&header, &[]));
        let expected = format!(
            "tensor \"a\": expected dimensions whose product fits into memory, found {shape}"
        );
        error(dir.path(), &["model.safetensors", &expected]);
    }
}

/// Makes a folder with two shards, which have `a` and `b`, and an index.
fn sharded(index: &str) -> tempfile::TempDir {
    let shard = |name| safetensors(&[(name, Dtype::F32, &[1], f32_bytes(&[1.0]))]);
    folder(&[
        ("config.json", b"{}"),
        ("1.safetensors", &shard("a")),
        ("2.safetensors", &shard("b")),
        ("model.safetensors.index.json", index.as_bytes()),
    ])
}

#[test]
fn index_opens_its_shards() {
    let dir = sharded(r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn missing_shard_is_named_with_its_tensor() {
    let dir = sharded(r#"{"weight_map": {"a": "1.safetensors", "b": "3.safetensors"}}"#);
    let parts = ["index.json", "weight_map.b", "3.safetensors"];
    let error = error(dir.path(), &parts);
    assert!(matches!(error, CheckpointError::MissingShard { .. }));
}

#[test]
fn index_cannot_leave_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("b.safetensors");
    let weights = safetensors(&[("b", Dtype::F32, &[1], f32_bytes(&[1.0]))]);
    fs::write(&target, weights).unwrap();
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    for shard in [
        target.to_str().unwrap().to_string(),
        format!("../{name}/b.safetensors"),
        format!("./../{name}/b.safetensors"),
        format!("x/../../{name}/b.safetensors"),
        r"..\\b.safetensors".into(),
        "..".into(),
        "".into(),
    ] {
        let index = format!(r#"{{"weight_map": {{"a": "1.safetensors", "b": "{shard}"}}}}"#);
        let parts = ["weight_map.b", "the name of a file inside the folder"];
        let error = error(sharded(&index).path(), &parts);
        assert!(matches!(error, CheckpointError::Index { .. }));
    }
}

#[test]
fn malformed_index_is_refused() {
    for (index, parts) in [
        ("", &["not valid JSON"][..]),
        ("[]", &["weight_map", "found nothing"]),
        ("{}", &["weight_map", "found nothing"]),
        (r#"{"weight_map": {}}"#, &["weight_map", "an object of 0"]),
        (r#"{"weight_map": "1.safetensors"}"#, &["weight_map"]),
        (r#"{"weight_map": {"a": 1}}"#, &["weight_map.a", "found 1"]),
    ] {
        error(sharded(index).path(), parts);
    }
}

/// Reads the only weight of a tensor.
fn weight(checkpoint: &Checkpoint, name: &str) -> f32 {
    let tensor = checkpoint.tensor(name, [1], FloatDType::F32, &Device::flex());
    tensor.unwrap().try_into_vec_as::<f32>().unwrap()[0]
}

#[test]
fn index_decides_between_copies_of_a_tensor() {
    for (own, other) in [("1", "2"), ("2", "1")] {
        let index = format!(
            r#"{{"weight_map": {{"a": "{own}.safetensors", "b": "{other}.safetensors"}}}}"#
        );
        let dir = sharded(&index);
        let write = |shard: &str, tensors: &[(&'static str, f32)]| {
            let tensor = |&(name, value): &(&'static str, f32)| {
                (name, Dtype::F32, &[1][..], f32_bytes(&[value]))
            };
            let tensors: Vec<_> = tensors.iter().map(tensor).collect();
            let path = dir.path().join(format!("{shard}.safetensors"));
            fs::write(path, safetensors(&tensors)).unwrap();
        };
        write(own, &[("a", 2.0)]);
        write(other, &[("a", 7.0), ("b", 3.0)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(
            [weight(&checkpoint, "a"), weight(&checkpoint, "b")],
            [2.0, 3.0]
        );
    }
    // The shard that the index names lacks the tensor.
    let dir = sharded(r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}"#);
    assert_eq!(weight(&Checkpoint::open(dir.path()).unwrap(), "a"), 1.0);
}

#[test]
fn tensor_that_only_the_index_has_is_no_error() {
    let dir = sharded(r#"{"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.names().eq(["a", "b"]));
    let needed = checkpoint.tensor("c", [1], FloatDType::F32, &Device::flex());
    let error = needed.unwrap_err().to_string();
    assert!(
        error.contains("tensor \"c\": expected shape [1], found no tensor"),
        "{error}"
    );
}

#[test]
fn duplicate_tensor_names_both_files() {
    // The index does not have the tensor.
    let dir = sharded(r#"{"weight_map": {"c": "1.safetensors", "b": "2.safetensors"}}"#);
    let path = dir.path().join("2.safetensors");
    let both = ["a", "b"].map(|name| (name, Dtype::F32, &[1][..], f32_bytes(&[1.0])));
    fs::write(path, safetensors(&both)).unwrap();
    let parts = ["tensor \"a\"", "1.safetensors", "2.safetensors"];
    error(dir.path(), &parts);
}

#[test]
fn pointer_of_git_lfs_is_recognised() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for name in ["config.json", "model.safetensors"] {
        let dir = checkpoint(&one_tensor());
        fs::write(dir.path().join(name), pointer).unwrap();
        error(dir.path(), &[name, "a pointer of Git LFS", "git lfs pull"]);
    }
    for name in ["model.gguf", "pytorch_model.bin"] {
        let dir = folder(&[("config.json", b"{}"), (name, pointer)]);
        error(dir.path(), &[name, "a pointer of Git LFS", "git lfs pull"]);
    }
    let dir = folder(&[("weights", pointer)]);
    let file = dir.path().join("weights");
    error(
        &file,
        &["weights: expected the file itself", "git lfs pull"],
    );
}

#[test]
fn adapter_is_refused_with_its_base_model() {
    let weights = one_tensor();
    let base: &[u8] = br#"{"base_model_name_or_path": "org/base"}"#;
    let adapter = [
        ("adapter_config.json", base),
        ("adapter_model.safetensors", &weights),
    ];
    let expected = ["an adapter (LoRA) of \"org/base\"", "merge_and_unload"];
    error(folder(&adapter).path(), &expected);
    // Some tools save the configuration of the base model beside the adapter.
    let dir = folder(&[("config.json", b"{}"), adapter[0], adapter[1]]);
    error(dir.path(), &expected);
    // The weights beside it are a model, which is read without the adapter.
    fs::write(dir.path().join("model.safetensors"), &weights).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().contains("a"));
}

#[test]
fn checkpoint_in_memory_follows_the_same_rules() {
    let open = |config: &[u8], weights| Checkpoint::from_bytes("embedded", config, weights);
    let checkpoint = open(b"{}", one_tensor()).unwrap();
    assert!(checkpoint.contains("a"));
    assert_eq!(checkpoint.dir(), None);
    let error = |config, weights| open(config, weights).unwrap_err().to_string();
    let no_json = error(b"", one_tensor());
    assert!(no_json.starts_with("embedded/config.json: not valid JSON"));
    let short = error(b"{}", vec![1, 2, 3]);
    assert!(short.starts_with("embedded/model.safetensors: not a complete"));
}
