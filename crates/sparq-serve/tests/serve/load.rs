//! Many clients at once: nothing is lost, and memory does not grow.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use sparq_serve::engine::EngineConfig;

use crate::support::{FAILED, RUNNING, Response, WAITING, config, metric, post, serve, wait_until};

const CLIENTS: usize = 64;

/// The time of the test. `SPARQ_LOAD_SECONDS` sets another.
fn duration() -> Duration {
    let seconds = std::env::var("SPARQ_LOAD_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(5))
}

/// The resident memory of this process in KiB, where the system tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn clients_lose_nothing_under_load() {
    let engine = EngineConfig {
        max_batch: 32,
        // The engine learns between two steps that a client has hung up.
        max_queue: 4 * CLIENTS,
        cache_bytes: 128 << 20,
        // For dense attention.
        slots: true,
        ..config()
    };
    let server = serve(engine, "");
    let text = "And the evening and the morning were another day of the work. ".repeat(10);
    let (end, times) = (Instant::now() + duration(), Mutex::new(Vec::new()));
    let half = Mutex::new(None);
    let client = |first: usize| {
        let mut round = first;
        // Every client asks once, however slow the machine.
        loop {
            let prompt = &text[..8 + 37 * (round % 15)];
            let tokens = 4 + round % 29;
            let body = json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                "method": (["dense", "sparq"][round % 2]) });
            let begun = Instant::now();
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(120)))
                .unwrap();
            stream
                .write_all(post("/v1/completions", &body.to_string()).as_bytes())
                .unwrap();
            if round % 10 == 3 {
                std::thread::sleep(Duration::from_millis(round as u64 % 20));
                drop(stream);
            } else {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                let response = Response::parse(&bytes);
                assert_eq!(response.status, 200, "{}", response.body);
                assert_eq!(response.json()["usage"]["completion_tokens"], tokens);
                times.lock().unwrap().push(begun.elapsed().as_secs_f64());
            }
            round += 1;
            let now = Instant::now();
            if now > end {
                return;
            }
            if now + duration() / 2 > end {
                half.lock().unwrap().get_or_insert_with(resident);
            }
        }
    };
    std::thread::scope(|scope| {
        for index in 0..CLIENTS {
            let client = &client;
            scope.spawn(move || client(index));
        }
    });
    wait_until(|| {
        metric(&server.metrics, RUNNING) == 0.0 && metric(&server.metrics, WAITING) == 0.0
    });
    let mut times = times.into_inner().unwrap();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let (before, after) = (half.into_inner().unwrap().flatten(), resident());
    println!(
        "{} answers, latency p50 {:.3} s, p95 {:.3} s, p99 {:.3} s; resident {before:?} KiB at \
         half, {after:?} KiB at the end",
        times.len(),
        at(0.5),
        at(0.95),
        at(0.99),
    );
    assert!(times.len() >= CLIENTS / 2);
    assert_eq!(metric(&server.metrics, FAILED), 0.0);
    if let Some((before, after)) = before.zip(after) {
        assert!(
            after < before + before / 4 + (64 << 10),
            "{before} KiB, then {after} KiB"
        );
    }
    assert!(server.stop());
}
