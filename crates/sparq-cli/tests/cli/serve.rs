//! `sparq serve`: a request, a signal and refusals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};

use crate::support::fails;

/// Sends a request and reads the response until the server closes the connection.
fn send(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn serves_until_a_signal() {
    let mut child = Command::new(cargo_bin("sparq"))
        .args([
            "serve",
            "--port",
            "0",
            "--context",
            "512",
            "--cache-memory",
            "0.1",
        ])
        .env_remove("BURN_DEVICE")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().rsplit("http://").next().unwrap();
    let body = json!({ "prompt": "In the", "max_tokens": 5, "method": "sparq" }).to_string();
    let response = send(
        address,
        &format!(
            "POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let document: Value = serde_json::from_str(body).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{response}");
    assert_eq!(document["model"], "embedded");
    assert_eq!(document["usage"]["completion_tokens"], 5);
    let page = send(address, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n");
    assert!(page.contains("content-security-policy") && page.contains("</html>"));
    if cfg!(unix) {
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(sent.success());
        assert!(child.wait().unwrap().success());
    } else {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn bad_settings_are_refused() {
    let found = ["--context: expected at most 8192 (the model's context), found 9000"];
    fails("serve --context 9000", &found);
    fails(
        "serve --api-key-file no-such-file",
        &["--api-key-file", "no-such-file"],
    );
    fails("serve --max-batch 0", &["--max-batch", "at least 1"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    fails(
        &format!("serve --port {port}"),
        &["cannot listen on", &port.to_string()],
    );
}
