//! Routes, streams, errors, keys, limits and shutdown.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use sparq_serve::engine::EngineConfig;

use crate::support::{
    CANCELLED, FAILED, RUNNING, TestServer, WAITING, config, metric, post, serve, wait_until,
};

const PROMPT: &str = "In the beginning";

fn completion(server: &TestServer, body: Value) -> Value {
    let response = server.post("/v1/completions", &body.to_string());
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}

fn greedy(tokens: usize) -> Value {
    json!({ "model": "embedded", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0 })
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[test]
fn stream_has_the_text_of_the_whole_answer() {
    let server = serve(config(), "");
    let whole = completion(&server, greedy(40));
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let usage = json!({ "prompt_tokens": 16, "completion_tokens": 40, "total_tokens": 56,
        "prompt_tokens_details": { "cached_tokens": 0 } });
    assert_eq!(whole["usage"], usage);
    assert_eq!(whole["object"], "text_completion");

    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let body = with(greedy(40), options).to_string();
    let response = server.post("/v1/completions", &body);
    assert!(
        response.head.contains("content-type: text/event-stream"),
        "{}",
        response.head
    );
    let events = response.events();
    let (last, pieces) = events.split_last().unwrap();
    let text = |event: &Value| event["choices"][0]["text"].as_str().unwrap().to_owned();
    let joined: String = pieces.iter().map(text).collect();
    assert_eq!(joined, choice["text"]);
    assert_eq!(
        pieces[pieces.len() - 1]["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(last["usage"]["completion_tokens"], 40);
    assert_eq!(
        (last["choices"].as_array().unwrap().len(), &last["id"]),
        (0, &pieces[0]["id"])
    );
    // HTTP/1.0 has no chunks: the stream ends with the connection.
    let old = post("/v1/completions", &body).replace("HTTP/1.1", "HTTP/1.0");
    let old = server.raw(old.as_bytes());
    assert!(!old.head.contains("chunked"));
    assert_eq!(old.events().len(), events.len());
}

#[test]
fn chat_joins_messages_and_streams_deltas() {
    let server = serve(config(), "");
    let messages = json!([{ "role": "system", "content": "In the" },
        { "role": "user", "content": [{ "type": "text", "text": "beginning" }] }]);
    let body = json!({ "messages": messages, "temperature": 0, "max_completion_tokens": 12,
        "logprobs": true, "top_logprobs": 3, "n": 2 });
    let whole = server
        .post("/v1/chat/completions", &body.to_string())
        .json();
    assert_eq!(whole["object"], "chat.completion");
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(
        (choices.len(), &choices[0]["message"]),
        (2, &choices[1]["message"])
    );
    let content = choices[0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(
        (
            content.len(),
            content[0]["top_logprobs"].as_array().unwrap().len()
        ),
        (12, 3)
    );
    assert_eq!(content[0]["token"], content[0]["top_logprobs"][0]["token"]);
    let prompt = completion(
        &server,
        json!({ "prompt": "In the\n\nbeginning", "temperature": 0,
        "max_tokens": 12 }),
    );
    assert_eq!(
        prompt["choices"][0]["text"],
        choices[0]["message"]["content"]
    );

    let body = with(body, json!({ "stream": true }));
    let events = server
        .post("/v1/chat/completions", &body.to_string())
        .events();
    let mut texts = [String::new(), String::new()];
    for event in &events {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    for text in &texts {
        assert_eq!(text, choices[0]["message"]["content"].as_str().unwrap());
    }
}

#[test]
fn several_prompts_have_choices_in_order() {
    let server = serve(config(), "");
    let prompts = ["In the beginning", "And God said", "Let there be"];
    let one = |prompt: &str| {
        let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 9, "echo": true });
        completion(&server, body)["choices"][0]["text"].clone()
    };
    let expected = prompts.map(one);
    assert!(expected[1].as_str().unwrap().starts_with("And God said"));
    let body = json!({ "prompt": prompts, "temperature": 0, "max_tokens": 9, "echo": true });
    let all = completion(&server, body.clone());
    let body = with(body, json!({ "stream": true }));
    let events = server.post("/v1/completions", &body.to_string()).events();
    for (index, expected) in expected.iter().enumerate() {
        assert_eq!(&all["choices"][index]["text"], expected);
        let of = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == index);
        let text = of.map(|event| event["choices"][0]["text"].as_str().unwrap());
        assert_eq!(&text.collect::<String>(), expected);
    }
}

#[test]
fn errors_have_status_parameter_and_message() {
    let server = serve(config(), "");
    let body = |more: Value| with(greedy(4), more).to_string();
    for (body, status, param) in [
        (body(json!({ "model": "other" })), 404, json!("model")),
        (
            body(json!({ "temperature": -1 })),
            400,
            json!("temperature"),
        ),
        (body(json!({ "top_p": 0 })), 400, json!(null)),
        (body(json!({ "n": 9 })), 400, json!("n")),
        (body(json!({ "method": "fast" })), 400, json!("method")),
        (body(json!({ "colour": "red" })), 400, json!("colour")),
        (body(json!({ "prompt": "" })), 400, json!(null)),
        (body(json!({ "prompt": [1, 300] })), 400, json!(null)),
        (body(json!({ "max_tokens": 5000 })), 400, json!(null)),
        (
            body(json!({ "prompt": "a".repeat(2000) })),
            400,
            json!(null),
        ),
        ("{".into(), 400, json!(null)),
        ("\u{0}".into(), 400, json!(null)),
        (
            format!("{}{}", "[".repeat(20000), "]".repeat(20000)),
            400,
            json!(null),
        ),
        ("a".repeat((64 << 10) + 1), 413, json!(null)),
    ] {
        let response = server.post("/v1/completions", &body);
        let error = &response.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert_eq!(
            (response.status, &error["param"]),
            (status, &param),
            "{message}"
        );
        assert!(
            message.contains("expected") && message.contains("found"),
            "{message}"
        );
        assert!(message.len() < 600 && error["type"].is_string());
    }
    assert_eq!(server.get("/v1/nothing").status, 404);
    assert_eq!(server.get("/v1/completions").status, 405);
    assert_eq!(server.raw(b"nonsense\r\n\r\n").status, 400);
    assert_eq!(
        server
            .raw(b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n")
            .status,
        400
    );
    let context = server.post("/v1/completions", &body(json!({ "max_tokens": 5000 })));
    assert_eq!(context.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(
        completion(&server, greedy(4))["usage"]["completion_tokens"],
        4
    );
}

#[test]
fn keys_guard_all_but_page_health_and_metrics() {
    let server = serve(config(), "first\nsecond\n");
    for path in ["/", "/health", "/metrics"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let with = |key: &str| {
        let head = "GET /v1/models HTTP/1.1\r\nconnection: close\r\n";
        server.raw(format!("{head}{key}\r\n").as_bytes())
    };
    assert_eq!(with("").status, 401);
    for key in [
        "Bearer third",
        "Bearer first second",
        "Basic first",
        "first",
        "Bearer ",
    ] {
        let response = with(&format!("authorization: {key}\r\n"));
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (401, &json!("invalid_api_key"))
        );
    }
    let models = with("Authorization: bearer second\r\n").json();
    assert_eq!(models["data"][0]["id"], "embedded");
}

#[test]
fn connection_serves_several_requests() {
    let server = serve(config(), "");
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let body = r#"{"prompt": "abc"}"#;
    let chunked = format!(
        "POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
        5\r\n{}\r\n{:x};x=y\r\n{}\r\n0\r\n\r\n",
        &body[..5],
        body.len() - 5,
        &body[5..]
    );
    let sized = format!(
        "POST /tokenize HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // The second and third arrive together, the last one ends the connection.
    stream.write_all(chunked.as_bytes()).unwrap();
    let last = "GET /v1/models/embedded HTTP/1.1\r\nconnection: close\r\n\r\n";
    stream
        .write_all(format!("{sized}{last}").as_bytes())
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert_eq!(text.matches(r#""tokens":[97,98,99]"#).count(), 2, "{text}");
    assert!(
        text.ends_with('}') && text.contains(r#""owned_by":"sparq""#),
        "{text}"
    );
}

#[test]
fn method_of_a_request_shows_in_its_traffic() {
    let server = serve(config(), "");
    let share = |method: &str| {
        let prompt = "And it came to pass ".repeat(20);
        let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 8, "method": method });
        let stats = completion(&server, body)["sparq"].clone();
        assert_eq!(stats["method"], method);
        let number = |name: &str| stats[name].as_f64().unwrap();
        number("cache_bytes_per_token") / number("dense_bytes_per_token")
    };
    assert_eq!(share("dense"), 1.0);
    assert!((0.05..0.5).contains(&share("sparq")), "{}", share("sparq"));
}

#[test]
fn client_that_hangs_up_frees_its_place() {
    let server = serve(
        EngineConfig {
            context: 8192,
            ..config()
        },
        "",
    );
    for stream in [false, true] {
        let body = with(greedy(8000), json!({ "stream": stream })).to_string();
        let mut connection = TcpStream::connect(server.address).unwrap();
        connection
            .write_all(post("/v1/completions", &body).as_bytes())
            .unwrap();
        wait_until(|| metric(&server.metrics, RUNNING) == 1.0);
        connection.shutdown(Shutdown::Both).unwrap();
        wait_until(|| metric(&server.metrics, RUNNING) == 0.0);
    }
    assert_eq!(metric(&server.metrics, CANCELLED), 2.0);
}

#[test]
fn full_queue_tells_when_to_retry() {
    let config = EngineConfig {
        max_batch: 1,
        max_queue: 1,
        context: 8192,
        ..config()
    };
    let server = serve(config, "");
    let begin = || {
        let mut connection = TcpStream::connect(server.address).unwrap();
        let body = greedy(8000).to_string();
        connection
            .write_all(post("/v1/completions", &body).as_bytes())
            .unwrap();
        connection
    };
    let first = begin();
    wait_until(|| metric(&server.metrics, RUNNING) == 1.0);
    let second = begin();
    wait_until(|| metric(&server.metrics, WAITING) == 1.0);
    let refused = server.post("/v1/completions", &greedy(1).to_string());
    assert_eq!(refused.status, 429);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    drop((first, second));
    wait_until(|| {
        metric(&server.metrics, RUNNING) == 0.0 && metric(&server.metrics, WAITING) == 0.0
    });
}

#[test]
fn stopping_server_finishes_what_runs() {
    let server = serve(config(), "");
    let address = server.address;
    let client = std::thread::spawn(move || {
        let mut connection = TcpStream::connect(address).unwrap();
        let body = greedy(300).to_string();
        connection
            .write_all(post("/v1/completions", &body).as_bytes())
            .unwrap();
        let mut response = String::new();
        connection.read_to_string(&mut response).unwrap();
        response
    });
    wait_until(|| metric(&server.metrics, RUNNING) == 1.0);
    assert!(server.stop());
    let response = client.join().unwrap();
    assert!(
        response.contains(r#""completion_tokens":300"#),
        "{response}"
    );
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn metrics_count_requests() {
    let server = serve(config(), "");
    completion(&server, greedy(7));
    let page = server.get("/metrics").body;
    for line in [
        "vllm:prompt_tokens_total{model_name=\"embedded\"} 16",
        "vllm:generation_tokens_total{model_name=\"embedded\"} 7",
        "vllm:num_requests_waiting{model_name=\"embedded\"} 0",
        "vllm:time_to_first_token_seconds_count{model_name=\"embedded\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"embedded\"} 6",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

/// Bytes that differ from run to run of the loop but not from test to test.
fn random(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) as usize
}

#[test]
fn damaged_requests_get_errors() {
    let server = serve(config(), "");
    let chat = json!({ "messages": [{ "role": "user", "content": "In the" }], "max_tokens": 1,
        "temperature": 0.5, "stop": ["a", "b"], "logit_bias": { "3": 1 }, "seed": 4 });
    let state = &mut 7;
    for round in 0..300 {
        let mut body = chat.to_string().into_bytes();
        for _ in 0..1 + random(state) % 4 {
            let at = random(state) % body.len();
            match random(state) % 3 {
                0 => body[at] = random(state) as u8,
                1 => drop(body.remove(at)),
                _ => body.insert(at, b"{}[]\",:0-e"[random(state) % 10]),
            }
        }
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\n\
            content-length: {}\r\n\r\n",
            body.len()
        );
        let response = server.raw(&[head.as_bytes(), &body].concat());
        assert!(
            [200, 400].contains(&response.status),
            "{round}: {}",
            response.body
        );
    }
    assert_eq!(
        completion(&server, greedy(4))["usage"]["completion_tokens"],
        4
    );
    assert_eq!(metric(&server.metrics, FAILED), 0.0);
}
