//! An engine and a server on the embedded model, and a client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use burn::tensor::{Device, FloatDType};
use serde_json::Value;
use sparq::methods::Auto;
use sparq::{Method, SparqConfig};
use sparq_models::text::{
    GenerateEvent, GenerateOptions, SamplingConfig, Session, SpeculativeConfig, TextTokenizer,
};
use sparq_models::{CausalLm, Decoder, DecoderConfig, embedded};
use sparq_serve::engine::{
    Decoding, Engine, EngineConfig, Event, Finish, Generation, Penalties, Request, TokenLogprobs,
};
use sparq_serve::http::{ApiKeys, Server, ServerConfig, ServerHandle, ServerModel};
use sparq_serve::metrics::Metrics;

/// SparQ with so few positions that every prompt of a test is longer.
pub fn sparq() -> Method {
    "sparq:r=8,k=16".parse().unwrap()
}

/// Drafts of three tokens with this SparQ.
pub fn lossless() -> Decoding {
    let draft = Auto::new(SparqConfig::new(8, 16), 1, &Device::default());
    Decoding::Lossless(SpeculativeConfig::new(draft).with_tokens(Some(3)))
}

pub fn model() -> Decoder {
    let checkpoint = embedded::checkpoint().unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    Decoder::load(&checkpoint, &config, FloatDType::F32, &Device::default()).unwrap()
}

pub fn tokenizer() -> TextTokenizer {
    embedded::tokenizer().unwrap()
}

pub fn config() -> EngineConfig {
    EngineConfig {
        dtype: FloatDType::F32,
        decodings: vec![Method::DENSE.into(), sparq().into(), lossless()],
        context: 1024,
        default_tokens: 32,
        max_batch: 8,
        max_queue: 64,
        cache_bytes: 256 << 20,
        prefill_chunk: 64,
        slots: false,
    }
}

/// The settings with and without slots.
pub fn both_ways() -> [EngineConfig; 2] {
    [false, true].map(|slots| EngineConfig { slots, ..config() })
}

pub struct Running {
    pub engine: Engine,
    pub metrics: Arc<Metrics>,
}

pub fn start(config: EngineConfig) -> Running {
    start_with(Box::new(model()), config)
}

pub fn start_with(model: Box<dyn CausalLm>, config: EngineConfig) -> Running {
    let metrics = Arc::new(Metrics::new("embedded"));
    let engine = Engine::start(model, tokenizer(), config, Arc::clone(&metrics)).unwrap();
    Running { engine, metrics }
}

/// Generates with a session, which serves one request at a time.
pub fn alone(model: &Decoder, prompt: &str, tokens: usize, method: Method) -> String {
    let cache = model.new_cache(1, 64, FloatDType::F32, &method).unwrap();
    let mut session = Session::new(cache, tokenizer());
    let options = GenerateOptions {
        method,
        max_new_tokens: tokens,
        prefill_chunk: config().prefill_chunk,
        ..GenerateOptions::default()
    };
    let prompt: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let on_event = &mut |_: GenerateEvent<'_>| ControlFlow::Continue(());
    session
        .generate(model, &prompt, &options, on_event)
        .unwrap()
        .text
}

/// A greedy request. The embedded model's tokens are bytes.
pub fn request(prompt: &str, tokens: usize) -> Request {
    Request {
        prompt: prompt.bytes().map(u32::from).collect(),
        choices: 1,
        max_tokens: Some(tokens),
        sampling: SamplingConfig::default(),
        penalties: Penalties::default(),
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        grammar: None,
        decoding: Method::DENSE.into(),
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: usize,
    pub finish: Option<Finish>,
    pub logprobs: Vec<TokenLogprobs>,
}

/// All answers of a request, and the tokens of its prompt that were known.
pub fn collect(generation: &mut Generation, choices: usize) -> (Vec<Answer>, usize) {
    let (mut answers, mut known) = (vec![Answer::default(); choices], 0);
    while answers.iter().any(|answer| answer.finish.is_none()) {
        match generation.wait() {
            Event::Prompt { cached } => known = cached,
            Event::Text {
                choice,
                text,
                logprobs,
            } => {
                answers[choice].text += &text;
                answers[choice].logprobs.extend(logprobs);
            }
            Event::End {
                choice,
                finish,
                tokens,
                ..
            } => {
                answers[choice].finish = Some(finish);
                answers[choice].tokens = tokens;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    (answers, known)
}

/// Submits a request of one answer and waits for it.
pub fn answer(engine: &Engine, request: Request) -> Answer {
    let mut generation = engine.submit(request).unwrap();
    collect(&mut generation, 1).0.remove(0)
}

/// Reads a metric. `name` may have a label of its own: `vllm:request_success_total stop`.
pub fn metric(metrics: &Metrics, name: &str) -> f64 {
    let (name, label) = name.split_once(' ').unwrap_or((name, ""));
    let page = metrics.render();
    let mut lines = page.lines().filter_map(|line| line.split_once('{'));
    let line = lines.find(|(found, rest)| *found == name && rest.contains(label));
    let (_, rest) = line.unwrap_or_else(|| panic!("expected {name} {label}, found {page}"));
    rest.rsplit(' ').next().unwrap().parse().unwrap()
}

pub const RUNNING: &str = "vllm:num_requests_running";
pub const WAITING: &str = "vllm:num_requests_waiting";
pub const CANCELLED: &str = "vllm:request_success_total abort";
pub const FAILED: &str = "vllm:request_success_total error";

/// Waits until something holds, for a minute at most.
pub fn wait_until(holds: impl Fn() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("expected within a minute");
}

/// A server of a test.
pub struct TestServer {
    pub address: SocketAddr,
    pub handle: ServerHandle,
    pub metrics: Arc<Metrics>,
    pub thread: JoinHandle<bool>,
}

pub fn serve(config: EngineConfig, keys: &str) -> TestServer {
    let Running { engine, metrics } = start(config);
    let model = ServerModel {
        name: "embedded".into(),
        template: None,
        methods: vec![
            ("dense".into(), Method::DENSE.into()),
            ("sparq".into(), sparq().into()),
            ("lossless".into(), lossless()),
        ],
    };
    let config = ServerConfig {
        keys: ApiKeys::from_lines(keys),
        max_body: 64 << 10,
        ..ServerConfig::default()
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(address, engine, Arc::clone(&metrics), model, config).unwrap();
    TestServer {
        address: server.address(),
        handle: server.handle(),
        metrics,
        thread: std::thread::spawn(move || server.run()),
    }
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The documents of a stream of events.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.split("\n\n").filter(|event| !event.is_empty());
        let mut data: Vec<&str> = data.map(|event| &event["data: ".len()..]).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        let parse = |data: &str| serde_json::from_str(data).unwrap();
        data.into_iter().map(parse).collect()
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let body = match head.contains("transfer-encoding: chunked") {
            true => dechunked(body),
            false => body.to_owned(),
        };
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body,
        }
    }
}

fn dechunked(mut body: &str) -> String {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return text;
        }
        text += &rest[..size];
        body = rest[size..].strip_prefix("\r\n").unwrap();
    }
}

impl TestServer {
    /// Sends bytes and reads until the server closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> Response {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        Response::parse(&response)
    }

    pub fn get(&self, path: &str) -> Response {
        self.raw(format!("GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n").as_bytes())
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.raw(post(path, body).as_bytes())
    }

    /// Stops the server. Returns whether every request ended in time.
    pub fn stop(self) -> bool {
        self.handle.stop();
        self.thread.join().unwrap()
    }
}

/// The bytes of a request.
pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}
