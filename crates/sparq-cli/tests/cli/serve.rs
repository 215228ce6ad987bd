//! `sparq serve`: requests, a signal, a kill and refusals.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, ScopedJoinHandle};

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};

use crate::support::fails;

/// The program as a server of the embedded model.
struct Served {
    child: Child,
    address: String,
    /// Kept open: the program may write more.
    _stdout: BufReader<ChildStdout>,
}

impl Served {
    /// Starts the program and waits until it listens. Port 0 stands for a free one.
    fn start(port: &str) -> Self {
        let settings = ["--context", "512", "--cache-memory", "0.1"];
        let mut child = Command::new(cargo_bin("sparq"))
            .args(["serve", "--port", port])
            .args(settings)
            .env_remove("BURN_DEVICE")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        Self {
            child,
            address: line.trim().rsplit("http://").next().unwrap().to_owned(),
            _stdout: stdout,
        }
    }
}

/// Sends a request and reads the response until the server closes the connection.
fn send(address: &str, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

/// A request for some tokens.
fn completion(tokens: usize) -> String {
    let body = json!({ "prompt": "In the", "max_tokens": tokens, "method": "sparq" }).to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Asserts that a response is an answer of some tokens.
fn check(response: &str, tokens: usize) {
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    let document: Value = serde_json::from_str(body).unwrap();
    assert_eq!(document["model"], "embedded");
    assert_eq!(document["usage"]["completion_tokens"], tokens);
}

#[test]
fn serves_until_a_signal() {
    let mut served = Served::start("0");
    let (child, address) = (&mut served.child, &served.address);
    check(&send(address, &completion(5)).unwrap(), 5);
    let page = send(address, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
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
fn restarts_on_its_port_after_a_kill() {
    let mut served = Served::start("0");
    let address = served.address.clone();
    let lost = thread::scope(|scope| {
        let long = || send(&address, &completion(400));
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(long)).collect();
        // Its prompt is read after theirs: they are running.
        check(&send(&address, &completion(2)).unwrap(), 2);
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        let lost = |client: ScopedJoinHandle<'_, io::Result<String>>| {
            // The connection ends without a response.
            client
                .join()
                .unwrap()
                .map_or(true, |response| response.is_empty())
        };
        clients.into_iter().map(lost).filter(|&lost| lost).count()
    });
    assert!(lost > 0, "expected a kill before the answers end");
    let port = address.rsplit(':').next().unwrap();
    let mut again = Served::start(port);
    assert_eq!(again.address, address);
    check(&send(&address, &completion(5)).unwrap(), 5);
    again.child.kill().unwrap();
    again.child.wait().unwrap();
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
