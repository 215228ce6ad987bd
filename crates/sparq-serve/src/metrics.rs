//! Metrics of a server, in Prometheus' text format: [`Metrics`].
//!
//! Names are those of vLLM where it has the same metric, so that its dashboards and routers of the
//! Kubernetes Gateway API's inference extension read them.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::engine::Finish;

/// The upper bounds of the buckets of times, in seconds.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

const FINISHED: &str = "vllm:request_success_total";

/// The metrics of a server.
pub struct Metrics {
    page: Page,
    handle: PrometheusHandle,
    /// The sequences that decode or whose prompts are read.
    pub(crate) running: Gauge,
    /// The requests in the queue.
    pub(crate) waiting: Gauge,
    cache_share: Gauge,
    reserved_bytes: Gauge,
    kept_bytes: Gauge,
    resident_bytes: Gauge,
    /// The tokens of prompts.
    pub(crate) prompt_tokens: Counter,
    /// The tokens of ended answers.
    pub(crate) generated_tokens: Counter,
    /// The tokens of prompts that were looked up among those kept.
    pub(crate) prefix_queries: Counter,
    /// Those that were found.
    pub(crate) prefix_hits: Counter,
    stopped: Counter,
    at_length: Counter,
    /// The requests whose client left.
    pub(crate) cancelled: Counter,
    /// The requests that failed.
    pub(crate) failed: Counter,
    /// From arrival to admission.
    pub(crate) queue_time: Histogram,
    /// From arrival to the first token.
    pub(crate) first_token_time: Histogram,
    /// From one token of an answer to the next.
    pub(crate) token_time: Histogram,
    /// From arrival to the end of an answer.
    pub(crate) request_time: Histogram,
}

impl Metrics {
    /// Makes the metrics of a server for this model, their label.
    pub fn new(model: &str) -> Self {
        let builder = PrometheusBuilder::new().add_global_label("model_name", model);
        let builder = builder.set_buckets(&BOUNDS).expect("there are buckets");
        let page = Page(builder.build_recorder());
        Self {
            handle: page.0.handle(),
            running: page.gauge("vllm:num_requests_running", "Sequences in the batch."),
            waiting: page.gauge("vllm:num_requests_waiting", "Requests in the queue."),
            cache_share: page.gauge(
                "vllm:kv_cache_usage_perc",
                "Share of the cache memory that is reserved, 0 to 1.",
            ),
            reserved_bytes: page.gauge(
                "sparq:cache_reserved_bytes",
                "Bytes of caches of running sequences.",
            ),
            kept_bytes: page.gauge(
                "sparq:cache_kept_bytes",
                "Bytes of caches kept for later prompts.",
            ),
            resident_bytes: page.gauge(
                "process_resident_memory_bytes",
                "Resident memory of the process, 0 if the system does not tell it.",
            ),
            prompt_tokens: page.counter("vllm:prompt_tokens_total", "Tokens of prompts."),
            generated_tokens: page.counter("vllm:generation_tokens_total", "Tokens of answers."),
            prefix_queries: page.counter(
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up among those kept.",
            ),
            prefix_hits: page.counter(
                "vllm:prefix_cache_hits_total",
                "Prompt tokens found among those kept.",
            ),
            stopped: page.finished("stop"),
            at_length: page.finished("length"),
            cancelled: page.finished("abort"),
            failed: page.finished("error"),
            queue_time: page.times(
                "vllm:request_queue_time_seconds",
                "From arrival to admission.",
            ),
            first_token_time: page.times(
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token.",
            ),
            token_time: page.times(
                "vllm:inter_token_latency_seconds",
                "From one token of an answer to the next.",
            ),
            request_time: page.times(
                "vllm:e2e_request_latency_seconds",
                "From arrival to the end of an answer.",
            ),
            page,
        }
    }

    /// Tells how many blocks of how many positions the memory for caches has, as routers that
    /// foresee prefixes ask.
    pub(crate) fn set_blocks(&self, positions: usize, blocks: usize) {
        let name = "vllm:cache_config_info";
        let help = "Positions of a block of a cache, and blocks of the memory for caches.";
        let labels = vec![
            Label::new("block_size", positions.to_string()),
            Label::new("num_gpu_blocks", blocks.to_string()),
        ];
        let recorder = &self.page.0;
        recorder.describe_gauge(name.into(), None, help.into());
        recorder
            .register_gauge(&Key::from_parts(name, labels), &Page::METADATA)
            .set(1.0);
    }

    /// Returns the counter of answers that ended so.
    pub(crate) fn finished(&self, finish: Finish) -> &Counter {
        match finish {
            Finish::Stop => &self.stopped,
            Finish::Length => &self.at_length,
        }
    }

    /// Sets the bytes of caches.
    pub(crate) fn set_cache(&self, reserved: usize, kept: usize, available: usize) {
        self.reserved_bytes.set(reserved as f64);
        self.kept_bytes.set(kept as f64);
        self.cache_share
            .set(reserved as f64 / available.max(1) as f64);
    }

    /// Moves the times recorded so far to their buckets. Until then, each takes memory.
    pub(crate) fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Returns all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.resident_bytes.set(resident_bytes().unwrap_or(0.0));
        self.handle.render()
    }
}

/// Returns the resident memory of this process, if the system tells it.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Registers metrics.
struct Page(PrometheusRecorder);

impl Page {
    const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

    fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.0.describe_gauge(name.into(), None, help.into());
        let gauge = self
            .0
            .register_gauge(&Key::from_static_name(name), &Self::METADATA);
        gauge.set(0.0);
        gauge
    }

    fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.0.describe_counter(name.into(), None, help.into());
        self.0
            .register_counter(&Key::from_static_name(name), &Self::METADATA)
    }

    fn finished(&self, reason: &'static str) -> Counter {
        let help = "Answers by the reason of their end.";
        self.0.describe_counter(FINISHED.into(), None, help.into());
        let labels = vec![Label::new("finished_reason", reason)];
        self.0
            .register_counter(&Key::from_parts(FINISHED, labels), &Self::METADATA)
    }

    fn times(&self, name: &'static str, help: &'static str) -> Histogram {
        self.0.describe_histogram(name.into(), None, help.into());
        self.0
            .register_histogram(&Key::from_static_name(name), &Self::METADATA)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn page_has_cumulative_buckets() {
        let metrics = Metrics::new("a \"model\"");
        metrics.token_time.record(Duration::from_millis(4));
        metrics.token_time.record(Duration::from_secs(2));
        metrics.run_upkeep();
        metrics.token_time.record(Duration::from_secs(1000));
        metrics.cancelled.increment(2);
        let page = metrics.render();
        let name = "vllm:inter_token_latency_seconds";
        let label = "model_name=\"a \\\"model\\\"\"";
        for line in [
            format!("{name}_bucket{{{label},le=\"0.005\"}} 1"),
            format!("{name}_bucket{{{label},le=\"2.5\"}} 2"),
            format!("{name}_bucket{{{label},le=\"+Inf\"}} 3"),
            format!("{name}_count{{{label}}} 3"),
            format!("{name}_sum{{{label}}} 1002.004"),
            format!("vllm:request_success_total{{{label},finished_reason=\"abort\"}} 2"),
            format!("vllm:num_requests_running{{{label}}} 0"),
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
