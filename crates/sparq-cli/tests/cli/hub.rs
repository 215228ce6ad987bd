//! Models from a local server in the role of the Hugging Face Hub.

#[path = "../../../../models/tests/hub_download/server.rs"]
#[allow(dead_code, reason = "the tests of the downloads use the rest")]
mod server;
use crate::support::{sparq, words};
use serde_json::Value;
use server::Hub;
use sparq_models::embedded;

/// Returns the text that `generate` adds to the prompt.
fn generated(model: &str, endpoint: &str, home: &std::path::Path, offline: &str) -> String {
    let line =
        format!("generate --prompt 'In the beginning' --max-new-tokens 8 --stats --json {model}");
    let mut command = sparq();
    command
        .args(words(&line))
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .env("HF_TOKEN", "secret")
        .env("HF_HUB_OFFLINE", offline);
    let done = command.assert().success();
    let document: Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
    document["text"].as_str().unwrap().to_owned()
}

#[test]
fn model_is_downloaded_once() {
    let hub = Hub::start(&[
        ("config.json", embedded::CONFIG),
        ("model.safetensors", embedded::WEIGHTS),
        ("tokenizer.json", embedded::TOKENIZER),
    ]);
    hub.state().token = Some("secret".into());
    let (endpoint, home) = (hub.endpoint(), tempfile::tempdir().unwrap());
    let own = generated("", &endpoint, home.path(), "1");
    assert!(hub.take_requests().is_empty(), "the embedded model");
    assert!(!own.is_empty());

    let model = "--model org/tiny";
    assert_eq!(generated(model, &endpoint, home.path(), "0"), own);
    assert!(!hub.take_requests().is_empty());
    assert_eq!(generated(model, &endpoint, home.path(), "1"), own);
    assert!(hub.take_requests().is_empty(), "from the cache");
}

#[test]
fn missing_model_is_named() {
    let hub = Hub::start(&[]);
    let home = tempfile::tempdir().unwrap();
    let output = sparq()
        .args(["inspect", "org/absent"])
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HOME", home.path())
        .env("HF_HUB_OFFLINE", "0")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("org/absent") && !message.contains("panicked"),
        "{message}"
    );
}
