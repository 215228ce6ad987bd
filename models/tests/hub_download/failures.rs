//! Interrupted downloads, wrong answers, and unreachable hubs.

use std::fs;

use sparq_models::hub::{HubError, HubOptions, fetch};

use crate::{
    SHARDS, assert_whole,
    files::assert_contains,
    offline, options,
    server::{Fault, Hub, etag},
    sharded, unused_endpoint,
};

#[test]
fn interrupted_download_resumes() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    hub.fail(SHARDS[1], Fault::Break(1000));
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::Request { .. }), "{error}");
    assert!(error.to_string().contains(SHARDS[1]), "{error}");
    assert!(fetch("org/tiny", None, &offline(&options)).is_err());
    assert!(fetch("org/tiny@c0ffee", None, &offline(&options)).is_err());
    hub.take_requests();

    let dir = fetch("org/tiny", None, &options).unwrap();
    assert_whole(&dir, &hub, SHARDS[1]);
    let requests = hub.take_requests();
    let ranges_of = |shard: &str| -> Vec<_> {
        let of_shard = requests
            .iter()
            .filter(|request| request.path.ends_with(shard));
        of_shard.map(|request| request.range.as_deref()).collect()
    };
    assert_eq!(
        ranges_of(SHARDS[1]),
        [Some("bytes=0-0"), Some("bytes=1000-")]
    );
    // The complete file was not requested again.
    assert!(ranges_of(SHARDS[0]).is_empty());
}

#[test]
fn broken_connection_is_retried() {
    let (hub, cache) = sharded();
    let mut options = options(&hub, &cache);
    options.retries = 2;
    for count in [10, 20] {
        hub.fail(SHARDS[0], Fault::Break(count));
    }
    let dir = fetch("org/tiny", None, &options).unwrap();
    assert_whole(&dir, &hub, SHARDS[0]);
    assert!(hub.state().faults.is_empty());
}

#[test]
fn complete_or_oversized_part_is_replaced() {
    let (hub, cache) = sharded();
    let blobs = cache.path().join("models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let content = |shard: &str| hub.state().files[shard].clone();
    let [whole, other] = SHARDS.map(content);
    fs::write(blobs.join(etag(&whole) + ".part"), &whole).unwrap();
    // The other part is longer than the file.
    fs::write(blobs.join(etag(&other) + ".part"), [7; 10_000]).unwrap();
    let dir = fetch("org/tiny", None, &options(&hub, &cache)).unwrap();
    assert_whole(&dir, &hub, SHARDS[0]);
    assert_whole(&dir, &hub, SHARDS[1]);
}

#[test]
fn short_answer_is_deleted() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    hub.fail(SHARDS[0], Fault::EndEarly(100));
    let error = fetch("org/tiny", None, &options).unwrap_err();
    let is_first = |file: &str| file == SHARDS[0];
    assert!(matches!(error, HubError::Incomplete { file, found: 100, .. } if is_first(&file)));
    assert!(fetch("org/tiny", None, &offline(&options)).is_err());
    let dir = fetch("org/tiny", None, &options).unwrap();
    assert_whole(&dir, &hub, SHARDS[0]);
}

#[test]
fn ignored_range_is_detected() {
    let (hub, cache) = sharded();
    let options = options(&hub, &cache);
    hub.fail(SHARDS[0], Fault::Break(100));
    hub.fail(SHARDS[0], Fault::IgnoreRange);
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::Request { .. }));
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::Incomplete { .. }));
    let dir = fetch("org/tiny", None, &options).unwrap();
    assert_whole(&dir, &hub, SHARDS[0]);
}

#[test]
fn repository_without_weights_lists_its_files() {
    let hub = Hub::start(&[("config.json", b"{}"), ("model.onnx", b"x")]);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("org/tiny", None, &options(&hub, &cache)).unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }));
    assert_contains(&error.to_string(), &["found config.json, model.onnx"]);
}

#[test]
fn answers_cannot_leave_the_cache() {
    let outside = tempfile::tempdir().unwrap();
    let cache_dir = outside.path().join("a/b/c/d/cache");
    let index = br#"{"weight_map": {"a": "../../../../../../stolen.safetensors"}}"#;
    let hub = Hub::start(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("../../../../../../stolen.safetensors", b"x"),
    ]);
    let mut options = HubOptions::new(&cache_dir);
    options.endpoint = hub.endpoint();
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::Index(_)), "{error}");
    hub.state().sha = "../../../../../stolen".into();
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
    let names = fs::read_dir(outside.path()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn unreachable_hub_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = HubOptions::new(cache.path());
    options.endpoint = unused_endpoint();
    options.retries = 0;
    let error = fetch("org/tiny", None, &options).unwrap_err();
    assert!(matches!(error, HubError::Request { .. }));
    assert!(error.to_string().contains(&options.endpoint), "{error}");
    options.endpoint = "no address".into();
    assert!(fetch("org/tiny", None, &options).is_err());
}
