//! Downloads from a local server that imitates the Hugging Face hub.
#![cfg(feature = "hub")]

mod failures;
#[path = "../checkpoint_support/mod.rs"]
mod files;
mod server;

use std::{fs, net::TcpListener, path::Path};

use files::assert_contains;
use server::{Hub, Request};
use sparq_models::{
    checkpoint::Checkpoint,
    hub::{HubError, HubOptions, fetch, resolve_model, resolve_model_with},
};
use tempfile::TempDir;

const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

/// Returns a safetensors file with one tensor of `len` bytes.
fn weights(name: &str, len: usize) -> Vec<u8> {
    let header =
        format!(r#"{{"{name}": {{"dtype": "U8", "shape": [{len}], "data_offsets": [0, {len}]}}}}"#);
    let data: Vec<u8> = (0..len).map(|at| at as u8).collect();
    files::with_header(&header, &data)
}

/// Starts a hub with a sharded model and unneeded files. Returns it with an empty cache.
fn sharded() -> (Hub, TempDir) {
    let [first, second] = SHARDS;
    let index = format!(r#"{{"weight_map": {{"a": "{first}", "b": "{second}"}}}}"#);
    let hub = Hub::start(&[
        ("config.json", br#"{"model_type": "llama"}"#),
        ("tokenizer.json", b"{\"version\": 1}"),
        ("generation_config.json", b"{}"),
        ("model.safetensors.index.json", index.as_bytes()),
        (SHARDS[0], &weights("a", 5000)),
        (SHARDS[1], &weights("b", 3000)),
        ("README.md", b"# tiny"),
        ("pytorch_model.bin", b"x"),
        ("onnx/model.safetensors", b"x"),
    ]);
    (hub, tempfile::tempdir().unwrap())
}

fn options(hub: &Hub, cache: &TempDir) -> HubOptions {
    let mut options = HubOptions::new(cache.path());
    options.endpoint = hub.endpoint();
    options.retries = 0;
    options
}

fn offline(options: &HubOptions) -> HubOptions {
    HubOptions {
        offline: true,
        ..options.clone()
    }
}

/// Asserts that the file `name` of the model equals that of the hub.
#[track_caller]
fn assert_whole(dir: &Path, hub: &Hub, name: &str) {
    let bytes = fs::read(dir.join(name)).unwrap();
    assert!(bytes == hub.state().files[name], "{name}");
}

#[test]
fn download_takes_only_needed_files_of_one_commit() {
    let (hub, cache) = sharded();
    let dir = fetch("org/tiny", None, &options(&hub, &cache)).unwrap();
    assert!(dir.starts_with(cache.path()));
    let small = ["config.json", "tokenizer.json", "generation_config.json"];
    for name in small.iter().chain(&SHARDS) {
        assert_whole(&dir, &hub, name);
    }
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    let requests = hub.take_requests();
    let asked = |part: &str| requests.iter().any(|request| request.path.contains(part));
    assert!(!asked("README") && !asked("pytorch") && !asked("onnx"));
    // No file that the list lacks is requested either.
    assert!(!asked("chat_template") && !asked("special_tokens_map"));
    assert!(asked("/resolve/c0ffee/") && !asked("/resolve/main/"));
    let mut sent = requests.iter().map(|request| &request.authorization);
    assert!(sent.all(Option::is_none));
}

#[test]
fn download_falls_back_to_pytorch_files() {
    let index = br#"{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}"#;
    let hub = Hub::start(&[
        ("config.json", b"{}"),
        ("pytorch_model.bin.index.json", index),
        ("pytorch_model-1.bin", b"one"),
        ("pytorch_model-2.bin", b"two"),
        ("training_args.bin", b"x"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let dir = fetch("org/tiny", None, &options(&hub, &cache)).unwrap();
    for shard in ["pytorch_model-1.bin", "pytorch_model-2.bin"] {
        assert_whole(&dir, &hub, shard);
    }
    assert!(!dir.join("training_args.bin").exists());
}

#[test]
fn second_call_sends_no_request() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    let first = fetch("org/tiny", None, &options).unwrap();
    assert!(!hub.take_requests().is_empty());
    assert_eq!(fetch("org/tiny", None, &options).unwrap(), first);
    let resolved = resolve_model_with("org/tiny@main", &options);
    assert_eq!(resolved.unwrap(), first);
    assert_eq!(fetch("org/tiny", None, &offline(&options)).unwrap(), first);
    // The commit can also be named directly.
    assert_eq!(fetch("org/tiny@c0ffee", None, &options).unwrap(), first);
    assert_eq!(hub.take_requests().len(), 0);
}

#[test]
fn revisions_are_cached_apart() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    let main = fetch("org/tiny", None, &options).unwrap();
    {
        let mut state = hub.state();
        state.branch = "v2".into();
        state.sha = "decaf".into();
        state.files.insert("config.json".into(), b"{}".to_vec());
    }
    let v2 = fetch("org/tiny@v2", None, &options).unwrap();
    assert_ne!(v2, main);
    assert_whole(&v2, &hub, "config.json");
    assert_eq!(fetch("org/tiny@main", Some("v2"), &options).unwrap(), v2);
    assert_eq!(fetch("org/tiny", None, &options).unwrap(), main);
    match fetch("org/tiny@v3", None, &options).unwrap_err() {
        HubError::NotFound { id, .. } => assert_eq!(id.to_string(), "org/tiny@v3"),
        other => panic!("{other}"),
    }
}

#[test]
fn offline_names_missing_files_and_the_remedy() {
    let (hub, cache) = sharded();
    let options = offline(&options(&hub, &cache));
    let error = fetch("org/tiny", None, &options).unwrap_err().to_string();
    let (files, cache) = (
        "config.json, model.safetensors",
        cache.path().to_str().unwrap(),
    );
    assert_contains(&error, &["org/tiny", files, cache]);
    assert_contains(&error, &["HF_HUB_OFFLINE", "run once without it"]);
    assert_eq!(hub.take_requests().len(), 0);
}

#[test]
fn offline_names_a_missing_shard() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    let dir = fetch("org/tiny", None, &options).unwrap();
    fs::remove_file(dir.join(SHARDS[1])).unwrap();
    match fetch("org/tiny", None, &offline(&options)).unwrap_err() {
        HubError::Offline { missing, .. } => assert_eq!(missing, SHARDS[1]),
        other => panic!("{other}"),
    }
    hub.take_requests();
    fetch("org/tiny", None, &options).unwrap();
    assert_whole(&dir, &hub, SHARDS[1]);
    // Only that file was downloaded again.
    let requests = hub.take_requests();
    let paths = requests.iter().map(|request| &request.path);
    let mut again = paths.filter(|path| path.contains("/resolve/"));
    assert!(again.next().is_some() && again.all(|path| path.ends_with(SHARDS[1])));
}

#[test]
fn unknown_model_is_named() {
    let (hub, cache) = sharded();
    let error = fetch("org/other", None, &options(&hub, &cache)).unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }));
    assert_contains(&error.to_string(), &["org/other", &hub.endpoint()]);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn token_opens_a_private_model() {
    let (hub, cache) = sharded();
    hub.state().token = Some("hf_secret".into());
    let mut options = options(&hub, &cache);
    let refused = |options: &HubOptions| match fetch("org/tiny", None, options).unwrap_err() {
        error @ HubError::Refused { status: 401, .. } => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(refused(&options).contains("set HF_TOKEN"));
    options.token = Some("hf_wrong".into());
    let message = refused(&options);
    assert!(message.contains("has not been given access") && !message.contains("hf_wrong"));
    hub.take_requests();
    options.token = Some("hf_secret".into());
    fetch("org/tiny", None, &options).unwrap();
    let requests = hub.take_requests();
    let sent = |request: &Request| request.authorization.as_deref() == Some("Bearer hf_secret");
    assert!(!requests.is_empty() && requests.iter().all(sent));
}

#[test]
fn tokenizer_may_be_missing() {
    let hub = Hub::start(&[
        ("config.json", b"{}"),
        ("model.safetensors", &weights("a", 10)),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&hub, &cache);
    let dir = fetch("org/tiny", None, &options).unwrap();
    assert_eq!(fetch("org/tiny", None, &offline(&options)).unwrap(), dir);
    options.endpoint = unused_endpoint();
    assert_eq!(fetch("org/tiny", None, &options).unwrap(), dir);
}

#[test]
fn repository_of_gguf_files_needs_a_quantisation() {
    let parts = [
        "Q8_0/m-Q8_0-00001-of-00002.gguf",
        "Q8_0/m-Q8_0-00002-of-00002.gguf",
    ];
    let hub = Hub::start(&[
        ("README.md", b"# tiny"),
        ("config.json", b"{}"),
        ("m-Q4_K_M.gguf", b"GGUF small"),
        (parts[0], b"GGUF one"),
        (parts[1], b"GGUF two"),
        ("mmproj-F16.gguf", b"GGUF projector"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&hub, &cache);
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::SeveralGguf { .. }), "{error}");
    assert_contains(&error.to_string(), &["org/tiny:Q4_K_M", parts[0]]);

    let file = fetch("org/tiny:Q4_K_M", None, &options).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"GGUF small");
    assert!(file.ends_with("m-Q4_K_M.gguf") && !file.with_file_name("Q8_0").exists());
    let missing = fetch("org/tiny:Q8_0", None, &offline(&options)).unwrap_err();
    assert_contains(&missing.to_string(), &["expected *Q8_0*.gguf in"]);
    fs::write(file.with_file_name("m-Q4_0.gguf"), "GGUF").unwrap();
    let several = fetch("org/tiny", None, &offline(&options)).unwrap_err();
    assert_contains(&several.to_string(), &["found m-Q4_0.gguf, m-Q4_K_M.gguf"]);
    fs::remove_file(file.with_file_name("m-Q4_0.gguf")).unwrap();
    let file = fetch("org/tiny:q8_0", None, &options).unwrap();
    assert!(file.ends_with(parts[0]));
    assert_eq!(
        fs::read(file.with_file_name(&parts[1][5..])).unwrap(),
        b"GGUF two"
    );
    hub.take_requests();
    options.endpoint = unused_endpoint();
    assert_eq!(fetch("org/tiny:Q8_0", None, &options).unwrap(), file);
    assert!(fetch("org/tiny:Q5_0", None, &options).is_err());
}

#[test]
fn only_gguf_file_of_a_repository_is_chosen() {
    let hub = Hub::start(&[("m-Q4_0.gguf", b"GGUF"), ("mmproj-F16.gguf", b"GGUF")]);
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, &cache);
    let file = fetch("org/tiny", None, &options).unwrap();
    assert!(file.ends_with("m-Q4_0.gguf"));
    assert_eq!(fetch("org/tiny", None, &offline(&options)).unwrap(), file);
}

#[test]
fn adapter_is_no_model() {
    let hub = Hub::start(&[
        ("config.json", b"{}"),
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", &weights("a", 10)),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("org/tiny", None, &options(&hub, &cache)).unwrap_err();
    assert_contains(&error.to_string(), &["found an adapter (LoRA)"]);
}

/// Returns an address without a server.
fn unused_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn folder_takes_precedence_over_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve_model(path).unwrap(), dir.path());
}

#[test]
fn unresolved_name_gives_both_reasons() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    let error = |spec: &str| {
        let error = resolve_model_with(spec, &options).unwrap_err();
        assert!(matches!(error, HubError::Unresolved { .. }));
        error.to_string()
    };
    let message = error("org/other");
    assert_contains(&message, &["no such file or folder", "404"]);
    let message = error("./models/llama");
    assert_contains(
        &message,
        &["no such file or folder", "a name like org/name"],
    );
    // An existing file is no name on the hub, whatever it holds.
    let file = cache.path().join("file");
    fs::write(&file, "").unwrap();
    hub.take_requests();
    let found = resolve_model_with(file.to_str().unwrap(), &options);
    assert_eq!(found.unwrap(), file);
    assert_eq!(hub.take_requests().len(), 0);
}
