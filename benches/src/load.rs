//! Load on a server of OpenAI's API: clients that ask at the same time, some of which hang up.
//!
//! Every answer is streamed, and checked for its end and its number of tokens.

use std::io::{BufRead, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

/// The load to put on a server.
#[derive(Clone, Debug)]
pub struct Load {
    /// The address, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// The key of the server.
    pub key: Option<String>,
    /// The clients that ask at the same time.
    pub clients: usize,
    /// The time after which no client asks again.
    pub time: Duration,
    /// The requests after which no client asks again.
    pub requests: Option<usize>,
    /// The lengths of prompts in tokens, of which each request takes the next.
    pub prompts: Vec<usize>,
    /// The lengths of answers in tokens, in the same way.
    pub answers: Vec<usize>,
    /// The first tokens that all prompts share.
    pub shared: usize,
    /// One request of so many ends before its answer. 0 for none.
    pub hang_up: usize,
    /// The method of decode steps, for servers that have the parameter.
    pub method: Option<String>,
}

/// The results.
#[derive(Debug, Default, Serialize)]
pub struct LoadReport {
    /// The model.
    pub model: String,
    /// The seconds until the last answer.
    pub seconds: f64,
    /// The answers that arrived whole.
    pub answers: usize,
    /// The requests that the client ended.
    pub hung_up: usize,
    /// The requests that the server refused for a full queue. Their clients asked again.
    pub refused: usize,
    /// The requests that failed, or whose answer was not whole.
    pub failed: usize,
    /// Some of the reasons.
    pub reasons: Vec<String>,
    /// The tokens of the prompts of whole answers.
    pub prompt_tokens: usize,
    /// The tokens of whole answers.
    pub answer_tokens: usize,
    /// Seconds from a request to its first piece of text, sorted.
    #[serde(skip)]
    pub first: Vec<f64>,
    /// Seconds per token after the first, of each answer, sorted.
    #[serde(skip)]
    pub between: Vec<f64>,
    /// Seconds of whole requests, sorted.
    #[serde(skip)]
    pub whole: Vec<f64>,
    /// The resident bytes of the server at half of the time and at the end, if it tells them.
    pub resident: Option<[f64; 2]>,
}

/// The end of a request.
enum Ended {
    Whole(Times),
    HungUp,
    /// Seconds after which to ask again.
    Refused(u64),
}

struct Times {
    first: f64,
    between: Option<f64>,
    whole: f64,
    prompt_tokens: usize,
    answer_tokens: usize,
}

/// Returns the value below which a share of sorted times lies, 0 without any.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

impl Load {
    /// Puts the load on the server.
    ///
    /// # Errors
    /// If the server does not answer, or has no model.
    pub fn run(&self) -> Result<LoadReport> {
        let agent = ureq::AgentBuilder::new()
            .timeout_connect(Duration::from_secs(10))
            .timeout_read(Duration::from_secs(600))
            // A server may close an idle connection just when it is used again.
            .max_idle_connections(0)
            .build();
        let model = self.model(&agent)?;
        let report = Mutex::new(LoadReport {
            model: model.clone(),
            ..LoadReport::default()
        });
        let (started, turns) = (Instant::now(), AtomicUsize::new(0));
        let ended = AtomicBool::new(false);
        let half = std::thread::scope(|scope| {
            let half = scope.spawn(|| {
                while started.elapsed() < self.time / 2 {
                    if ended.load(Ordering::Relaxed) {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                self.resident(&agent)
            });
            let client = || self.client(&agent, &model, &turns, started, &report);
            let clients: Vec<_> = (0..self.clients).map(|_| scope.spawn(client)).collect();
            let panicked = clients.into_iter().filter_map(|client| client.join().err());
            let panicked = panicked.count();
            ended.store(true, Ordering::Relaxed);
            (panicked == 0).then(|| half.join().ok().flatten())
        });
        let half = half.context("a client of this program panicked")?;
        let mut report = report.into_inner().unwrap_or_default();
        report.seconds = started.elapsed().as_secs_f64();
        report.resident = half.zip(self.resident(&agent)).map(<[f64; 2]>::from);
        for times in [&mut report.first, &mut report.between, &mut report.whole] {
            times.sort_by(f64::total_cmp);
        }
        Ok(report)
    }

    fn get(&self, agent: &ureq::Agent, path: &str) -> ureq::Request {
        self.with_key(agent.get(&format!("{}{path}", self.url)))
    }

    fn with_key(&self, request: ureq::Request) -> ureq::Request {
        match &self.key {
            Some(key) => request.set("authorization", &format!("Bearer {key}")),
            None => request,
        }
    }

    fn model(&self, agent: &ureq::Agent) -> Result<String> {
        let response = self.get(agent, "/v1/models").call();
        let response = response.with_context(|| format!("--url: no server at {}", self.url))?;
        let document: Value = serde_json::from_str(&response.into_string()?)?;
        let name = document["data"][0]["id"].as_str();
        name.map(str::to_owned)
            .context("/v1/models: expected a model, found none")
    }

    /// The resident memory of the server in bytes.
    fn resident(&self, agent: &ureq::Agent) -> Option<f64> {
        let page = self
            .get(agent, "/metrics")
            .call()
            .ok()?
            .into_string()
            .ok()?;
        let mut lines = page.lines();
        let line = lines.find(|line| line.starts_with("process_resident_memory_bytes"))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Asks until the end.
    fn client(
        &self,
        agent: &ureq::Agent,
        model: &str,
        turns: &AtomicUsize,
        started: Instant,
        report: &Mutex<LoadReport>,
    ) {
        loop {
            let turn = turns.fetch_add(1, Ordering::Relaxed);
            if self.requests.is_some_and(|most| turn >= most) {
                return;
            }
            loop {
                let ended = self.ask(agent, model, turn);
                let Ok(mut report) = report.lock() else {
                    return;
                };
                match ended {
                    Ok(Ended::Refused(seconds)) => {
                        report.refused += 1;
                        drop(report);
                        std::thread::sleep(Duration::from_secs(seconds));
                        continue;
                    }
                    Ok(Ended::HungUp) => report.hung_up += 1,
                    Ok(Ended::Whole(times)) => report.add(&times),
                    Err(error) => report.fail(&error),
                }
                break;
            }
            if started.elapsed() > self.time {
                return;
            }
        }
    }

    /// The tokens of a prompt. They differ from turn to turn after the shared ones.
    fn prompt(&self, turn: usize) -> Vec<u32> {
        let length = self.prompts[turn % self.prompts.len()];
        // Printable bytes of vocabularies of bytes, and tokens of every other one.
        let token = |index: usize| {
            let seed = if index < self.shared { 0 } else { turn + 1 };
            let mixed = (seed * 0x9E37 + index + 1).wrapping_mul(0x9E37_79B9) >> 7;
            32 + (mixed % 90) as u32
        };
        (0..length).map(token).collect()
    }

    fn ask(&self, agent: &ureq::Agent, model: &str, turn: usize) -> Result<Ended> {
        let tokens = self.answers[turn / self.prompts.len() % self.answers.len()];
        let mut body = json!({
            "model": model,
            "prompt": self.prompt(turn),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(method) = &self.method {
            body["method"] = json!(method);
        }
        let hangs_up = self.hang_up > 0 && turn % self.hang_up == self.hang_up - 1;
        let started = Instant::now();
        let request = self.with_key(agent.post(&format!("{}/v1/completions", self.url)));
        let request = request.set("content-type", "application/json");
        let response = match request.send_string(&body.to_string()) {
            Ok(response) => response,
            Err(ureq::Error::Status(429, response)) => {
                let seconds = response.header("retry-after");
                let seconds = seconds.and_then(|seconds| seconds.parse().ok());
                return Ok(Ended::Refused(seconds.unwrap_or(1)));
            }
            Err(ureq::Error::Status(status, response)) => {
                bail!("status {status}: {}", response.into_string()?)
            }
            Err(error) => return Err(error.into()),
        };
        read(response, started, tokens, hangs_up.then_some(turn % 7))
    }
}

/// Reads a stream of events. `most` are the pieces after which a client hangs up.
fn read(
    response: ureq::Response,
    started: Instant,
    tokens: usize,
    most: Option<usize>,
) -> Result<Ended> {
    let (mut first, mut pieces, mut usage, mut finish) = (None, 0, Value::Null, Value::Null);
    let mut done = false;
    for line in BufReader::new(response.into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data)?;
        if !event["error"].is_null() {
            bail!("{}", event["error"]);
        }
        if !event["usage"].is_null() {
            usage = event["usage"].clone();
        }
        // The last event has no choice, and indexing gives `null`.
        let choice = &event["choices"][0];
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
        if choice["text"].is_string() {
            first.get_or_insert_with(|| started.elapsed().as_secs_f64());
            pieces += 1;
            if most.is_some_and(|most| pieces > most) {
                return Ok(Ended::HungUp);
            }
        }
    }
    let whole = started.elapsed().as_secs_f64();
    let count = |name: &str| usage[name].as_u64().unwrap_or(0) as usize;
    let found = count("completion_tokens");
    if !done || finish != "length" || found != tokens {
        bail!(
            "expected {tokens} tokens, \"length\" and [DONE], found {found}, {finish} and {}",
            if done { "[DONE]" } else { "none" }
        );
    }
    let first = first.unwrap_or(whole);
    Ok(Ended::Whole(Times {
        first,
        between: (tokens > 1).then(|| (whole - first) / (tokens - 1) as f64),
        whole,
        prompt_tokens: count("prompt_tokens"),
        answer_tokens: found,
    }))
}

impl LoadReport {
    /// The most reasons of failures to keep.
    const MOST_REASONS: usize = 5;

    fn add(&mut self, times: &Times) {
        self.answers += 1;
        self.prompt_tokens += times.prompt_tokens;
        self.answer_tokens += times.answer_tokens;
        self.first.push(times.first);
        self.between.extend(times.between);
        self.whole.push(times.whole);
    }

    fn fail(&mut self, error: &anyhow::Error) {
        self.failed += 1;
        if self.reasons.len() < Self::MOST_REASONS {
            self.reasons.push(format!("{error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        assert_eq!(quantile(&[], 0.5), 0.0);
        let times = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(
            [0.0, 0.5, 1.0].map(|share| quantile(&times, share)),
            [1.0, 3.0, 5.0]
        );
    }

    #[test]
    fn prompts_share_their_first_tokens_only() {
        let load = Load {
            url: String::new(),
            key: None,
            clients: 1,
            time: Duration::ZERO,
            requests: None,
            prompts: vec![40, 30],
            answers: vec![1],
            shared: 20,
            hang_up: 0,
            method: None,
        };
        let (a, b) = (load.prompt(0), load.prompt(1));
        assert_eq!((a.len(), b.len()), (40, 30));
        assert_eq!(a[..20], b[..20]);
        assert_ne!(a[20..30], b[20..30]);
        assert_ne!(a[20..], load.prompt(2)[20..]);
    }
}
