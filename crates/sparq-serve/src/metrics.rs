//! Counts of a server in Prometheus' text format: [`Metrics`].
//!
//! Names are those of vLLM where it has the same metric, so that its dashboards and routers of the
//! Kubernetes Gateway API's inference extension read them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::Finish;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the number.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is set.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the buckets of a [`Histogram`], in seconds.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Times in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Adds a time.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(index) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[index].fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the mean in seconds, 0 without any time.
    pub fn mean(&self) -> f64 {
        match self.count.load(Ordering::Relaxed) {
            0 => 0.0,
            count => self.seconds() / count as f64,
        }
    }

    fn seconds(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9
    }
}

/// The metrics of a server.
#[derive(Debug, Default)]
pub struct Metrics {
    model: String,
    /// The sequences that decode or whose prompts are read.
    pub running: Gauge,
    /// The requests in the queue.
    pub waiting: Gauge,
    /// Millionths of the memory for caches that are reserved.
    cache_share: Gauge,
    reserved_bytes: Gauge,
    kept_bytes: Gauge,
    /// The tokens of prompts.
    pub prompt_tokens: Counter,
    /// The tokens of ended answers.
    pub generated_tokens: Counter,
    /// The tokens of prompts that were looked up among those kept.
    pub prefix_queries: Counter,
    /// Those that were found.
    pub prefix_hits: Counter,
    stopped: Counter,
    at_length: Counter,
    /// The requests whose client left.
    pub cancelled: Counter,
    /// The requests that failed.
    pub failed: Counter,
    /// From arrival to admission.
    pub queue_time: Histogram,
    /// From arrival to the first token.
    pub first_token_time: Histogram,
    /// From one token of an answer to the next.
    pub token_time: Histogram,
    /// From arrival to the end of an answer.
    pub request_time: Histogram,
}

impl Metrics {
    /// Makes the metrics of a server for this model, their label.
    pub fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the counter of answers that ended so.
    pub fn finished(&self, finish: Finish) -> &Counter {
        match finish {
            Finish::Stop => &self.stopped,
            Finish::Length => &self.at_length,
        }
    }

    /// Sets the bytes of caches.
    pub(crate) fn set_cache(&self, reserved: usize, kept: usize, available: usize) {
        self.reserved_bytes.set(reserved as u64);
        self.kept_bytes.set(kept as u64);
        let share = reserved as f64 / available.max(1) as f64;
        self.cache_share.set((share * 1e6) as u64);
    }

    /// Returns all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut page = Page::new(&self.model);
        page.gauge(
            "vllm:num_requests_running",
            "Sequences in the batch.",
            self.running.get() as f64,
        );
        page.gauge(
            "vllm:num_requests_waiting",
            "Requests in the queue.",
            self.waiting.get() as f64,
        );
        let share = self.cache_share.get() as f64 / 1e6;
        page.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of the cache memory that is reserved, 0 to 1.",
            share,
        );
        let bytes = self.reserved_bytes.get() as f64;
        page.gauge(
            "sparq:cache_reserved_bytes",
            "Bytes of caches of running sequences.",
            bytes,
        );
        let bytes = self.kept_bytes.get() as f64;
        page.gauge(
            "sparq:cache_kept_bytes",
            "Bytes of caches kept for later prompts.",
            bytes,
        );
        page.counter(
            "vllm:prompt_tokens_total",
            "Tokens of prompts.",
            &self.prompt_tokens,
        );
        page.counter(
            "vllm:generation_tokens_total",
            "Tokens of answers.",
            &self.generated_tokens,
        );
        page.counter(
            "vllm:prefix_cache_queries_total",
            "Prompt tokens looked up.",
            &self.prefix_queries,
        );
        page.counter(
            "vllm:prefix_cache_hits_total",
            "Prompt tokens found.",
            &self.prefix_hits,
        );
        page.finished([
            ("stop", &self.stopped),
            ("length", &self.at_length),
            ("abort", &self.cancelled),
            ("error", &self.failed),
        ]);
        for (name, help, histogram) in [
            (
                "vllm:request_queue_time_seconds",
                "Arrival to admission.",
                &self.queue_time,
            ),
            (
                "vllm:time_to_first_token_seconds",
                "Arrival to first token.",
                &self.first_token_time,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Token to token.",
                &self.token_time,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "Arrival to end.",
                &self.request_time,
            ),
        ] {
            page.histogram(name, help, histogram);
        }
        page.text
    }
}

/// A page in Prometheus' text format.
struct Page {
    text: String,
    label: String,
}

impl Page {
    fn new(model: &str) -> Self {
        let escaped = model
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        Self {
            text: String::new(),
            label: format!("model_name=\"{escaped}\""),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn begin(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.begin(name, help, "gauge");
        let label = self.label.clone();
        self.line(format_args!("{name}{{{label}}} {value}"));
    }

    fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.begin(name, help, "counter");
        let label = self.label.clone();
        self.line(format_args!("{name}{{{label}}} {}", counter.get()));
    }

    fn finished(&mut self, reasons: [(&str, &Counter); 4]) {
        let (name, label) = ("vllm:request_success_total", self.label.clone());
        self.begin(name, "Answers by the reason of their end.", "counter");
        for (reason, counter) in reasons {
            let count = counter.get();
            self.line(format_args!(
                "{name}{{{label},finished_reason=\"{reason}\"}} {count}"
            ));
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.begin(name, help, "histogram");
        let label = self.label.clone();
        // Read first: a time that arrives meanwhile is in no bucket above it.
        let count = histogram.count.load(Ordering::Relaxed);
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&histogram.buckets) {
            below += bucket.load(Ordering::Relaxed);
            self.line(format_args!(
                "{name}_bucket{{{label},le=\"{bound}\"}} {below}"
            ));
        }
        let count = count.max(below);
        self.line(format_args!("{name}_bucket{{{label},le=\"+Inf\"}} {count}"));
        self.line(format_args!(
            "{name}_sum{{{label}}} {}",
            histogram.seconds()
        ));
        self.line(format_args!("{name}_count{{{label}}} {count}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_cumulative_buckets() {
        let metrics = Metrics::new("a \"model\"");
        metrics.token_time.observe(Duration::from_millis(4));
        metrics.token_time.observe(Duration::from_secs(2));
        metrics.token_time.observe(Duration::from_secs(1000));
        let page = metrics.render();
        let name = "vllm:inter_token_latency_seconds";
        let label = "model_name=\"a \\\"model\\\"\"";
        for line in [
            format!("{name}_bucket{{{label},le=\"0.005\"}} 1"),
            format!("{name}_bucket{{{label},le=\"2.5\"}} 2"),
            format!("{name}_bucket{{{label},le=\"+Inf\"}} 3"),
            format!("{name}_count{{{label}}} 3"),
            format!("{name}_sum{{{label}}} 1002.004"),
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!((metrics.token_time.mean() - 334.0013).abs() < 1e-3);
    }
}
