//! `sparq serve`: an HTTP server with OpenAI's API.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use burn::tensor::FloatDType;
use clap::Args;
use serde::Serialize;
use sparq::Method;
use sparq_device::DeviceChoice;
use sparq_serve::engine::{Decoding, Engine, EngineConfig};
use sparq_serve::http::{ApiKeys, Server, ServerConfig, ServerModel};
use sparq_serve::metrics::Metrics;

use crate::args::{DtypeArgs, ModelArgs, at_least_one, positive};
use crate::exit::Outcome;
use crate::interrupt;
use crate::memory;
use crate::method::{DraftArgs, MethodArgs, MethodName};
use crate::model::{Description, ModelSource};
use crate::output::Output;

/// The share of the free memory that caches may take, unless the user gives a number.
const CACHE_SHARE: f64 = 0.5;
/// The bytes of caches on a device that does not tell its memory.
const CACHE_BYTES: f64 = 4.0 * (1u64 << 30) as f64;

/// The arguments of `sparq serve`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The server speaks OpenAI's API: /v1/completions, /v1/chat/completions and /v1/models, and has /health, \
/metrics (Prometheus), /tokenize and a chat page at /. A request may choose the method of its decode steps \
by \"method\": \"auto\", \"sparq\", \"lossless\" or \"dense\".

Ctrl-C or SIGTERM ends the server when the running requests have ended; a second one at once.

Examples:
  sparq serve
  sparq serve --model org/name --host 0.0.0.0 --port 8080 --api-key-file keys.txt
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"In the beginning\", \"max_tokens\": 32}'")]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Name of the model in requests [default: the argument of --model, or `embedded`]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Address to listen on. 0.0.0.0 admits other machines
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    host: IpAddr,
    /// Port to listen on. 0 takes a free one
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// File with the keys of clients, one per line. Without it, every client is served
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    /// Most sequences that decode together
    #[arg(long, default_value_t = 32, value_parser = at_least_one, value_name = "N")]
    max_batch: usize,
    /// Most requests that wait. Others are refused with status 429
    #[arg(long, default_value_t = 256, value_parser = at_least_one, value_name = "N")]
    max_queue: usize,
    /// Most positions of a sequence, prompt and answer together [default: the model's context]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    context: Option<usize>,
    /// Most tokens of an answer in a chat whose request gives no number
    #[arg(long, default_value_t = 1024, value_parser = at_least_one, value_name = "N")]
    max_tokens: usize,
    /// Memory for caches, in GiB [default: half of what the weights leave free]
    #[arg(long, value_parser = positive, value_name = "GIB")]
    cache_memory: Option<f64>,
    /// Most prompt tokens between two decode steps [default: 256 on CPUs, 2048 on GPUs]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    prefill_chunk: Option<usize>,
    /// Seconds that running requests may take after Ctrl-C or SIGTERM
    #[arg(long, default_value_t = 30, value_name = "S")]
    grace: u64,
}

/// The JSON document, printed when the server listens.
#[derive(Debug, Serialize)]
struct Started {
    model: String,
    url: String,
    context: usize,
    cache_bytes: usize,
}

/// Serves requests until Ctrl-C.
pub fn run(args: &ServeArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let keys = args.keys()?;
    let source = args.model.source(None)?;
    let description = source.describe()?;
    let name = args.model_name.clone().unwrap_or_else(|| match &source {
        ModelSource { place: None, .. } => "embedded".to_owned(),
        ModelSource {
            place: Some(place), ..
        } => place.name.clone(),
    });
    let methods = args.methods(&description, device)?;
    let dtype = args.dtype.of(description.stored_float, device);
    let context = args.context(&description)?;
    let cache_bytes = args.cache_bytes(&source, dtype, device)?;
    let template = source.chat_template()?;
    if template.is_none() {
        tracing::info!("{source} has no chat template: the texts of a chat are joined");
    }

    let opened = device.open();
    let loaded = source.load(&opened, dtype)?;
    let metrics = Arc::new(Metrics::new(&name));
    let config = EngineConfig {
        dtype,
        decodings: methods.iter().map(|&(_, decoding)| decoding).collect(),
        context,
        default_tokens: args.max_tokens,
        max_batch: args.max_batch,
        max_queue: args.max_queue,
        cache_bytes,
        prefill_chunk: args
            .prefill_chunk
            .unwrap_or(if device.is_gpu() { 2048 } else { 256 }),
        slots: sparq::ops::has_kernels(&opened),
    };
    let engine = Engine::start(
        loaded.model,
        source.tokenizer()?,
        config,
        Arc::clone(&metrics),
    )?;
    let model = ServerModel {
        name: name.clone(),
        template,
        methods,
    };
    let config = ServerConfig {
        keys,
        grace: Duration::from_secs(args.grace),
        ..ServerConfig::default()
    };
    let address = SocketAddr::new(args.host, args.port);
    let server = Server::bind(address, engine, metrics, model, config);
    let server = server.with_context(|| format!("--host, --port: cannot listen on {address}"))?;
    let handle = server.handle();
    interrupt::stop_on_interrupt(move || handle.stop())?;
    let url = format!("http://{}", server.address());
    out.line(&format!("{source} at {url}"))?;
    out.document(&Started {
        model: name,
        url,
        context,
        cache_bytes,
    })?;
    if !server.run() {
        bail!(
            "--grace: expected the running requests to end in {} s, found some running",
            args.grace
        );
    }
    Ok(Outcome::Done)
}

impl ServeArgs {
    fn keys(&self) -> Result<ApiKeys> {
        let Some(path) = &self.api_key_file else {
            return Ok(ApiKeys::default());
        };
        read_keys(path).context("--api-key-file")
    }

    /// Returns the methods that requests may name, the default first.
    fn methods(
        &self,
        description: &Description,
        device: &DeviceChoice,
    ) -> Result<Vec<(String, Decoding)>> {
        let names = [
            ("auto", MethodName::Auto),
            ("sparq", MethodName::Sparq),
            ("lossless", MethodName::Lossless),
            ("dense", MethodName::Dense),
        ];
        let device = device.open();
        let of = |(text, name): (&str, MethodName)| {
            let args = MethodArgs {
                method: Some(name),
                ..self.method
            };
            let drafts = args.speculative(&DraftArgs::default(), description, &device)?;
            let decoding = match drafts {
                Some(config) => Decoding::Lossless(config),
                None => args.method(name, description, &device)?.into(),
            };
            Ok((text.to_owned(), decoding))
        };
        let mut methods = names.map(of).into_iter().collect::<Result<Vec<_>>>()?;
        let default = self.method.method.unwrap_or(MethodName::Auto);
        let is_default = |&(_, name): &(&str, MethodName)| name == default;
        let first = names.iter().position(is_default).unwrap_or(0);
        methods[..=first].rotate_right(1);
        Ok(methods)
    }

    fn context(&self, description: &Description) -> Result<usize> {
        let most = description.context;
        match self.context {
            Some(found) if found > most => {
                bail!("--context: expected at most {most} (the model's context), found {found}")
            }
            context => Ok(context.unwrap_or(most)),
        }
    }

    /// Returns the bytes that caches may take.
    fn cache_bytes(
        &self,
        source: &ModelSource,
        dtype: FloatDType,
        device: &DeviceChoice,
    ) -> Result<usize> {
        if let Some(gib) = self.cache_memory {
            return Ok((gib * (1u64 << 30) as f64) as usize);
        }
        let weights = source
            .demand(device, dtype, Method::DENSE)?
            .memory()
            .weights;
        let free = memory::of_device(device).map(|bytes| bytes - weights);
        Ok(free.map_or(CACHE_BYTES, |free| (free * CACHE_SHARE).max(0.0)) as usize)
    }
}

fn read_keys(path: &Path) -> Result<ApiKeys> {
    let text = crate::model::read_text(path)?;
    let keys = ApiKeys::from_lines(&text);
    if keys.is_empty() {
        bail!("{}: expected a key per line, found none", path.display());
    }
    Ok(keys)
}
