//! `sparq-bench serve`: load on a running server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use sparq_output::files::OutputFile;
use sparq_output::numbers::{bytes, count, digits};
use sparq_output::table::Table;

use super::args::{at_least_one, check_positive, print};
use crate::load::{Load, LoadReport, quantile};

/// Arguments of `sparq-bench serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address of the server: `sparq serve`, or another one with OpenAI's API
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    /// Key of the server
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Clients that ask at the same time
    #[arg(long, default_value_t = 8, value_parser = at_least_one, value_name = "N")]
    clients: usize,
    /// Seconds after which no client asks again [default: 30, without end with --requests]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Requests after which no client asks again
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    requests: Option<usize>,
    /// Lengths of prompts in tokens. Each request takes the next one
    #[arg(long, value_delimiter = ',', default_value = "16,128,512", value_name = "TOKENS",
          value_parser = at_least_one)]
    prompts: Vec<usize>,
    /// Lengths of answers in tokens. Requests take the next one after each prompt length
    #[arg(long, value_delimiter = ',', default_value = "16,64", value_name = "TOKENS",
          value_parser = at_least_one)]
    tokens: Vec<usize>,
    /// Number of first tokens that all prompts share, like a system prompt
    #[arg(long, default_value_t = 0, value_name = "N")]
    shared: usize,
    /// One request of N hangs up before its answer ends. 0: none does
    #[arg(long, default_value_t = 0, value_name = "N")]
    hang_up: usize,
    /// Method of decode steps: auto, sparq, lossless or dense [default: that of the server]
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs `sparq-bench serve`.
pub fn serve(args: &ServeArgs) -> Result<()> {
    check_positive("--seconds", args.seconds)?;
    let seconds = args
        .seconds
        .unwrap_or(if args.requests.is_some() { 1e6 } else { 30.0 });
    let output = args.json.as_deref().map(OutputFile::create).transpose()?;
    let load = Load {
        url: args.url.trim_end_matches('/').to_owned(),
        key: args.api_key.clone(),
        clients: args.clients,
        time: Duration::from_secs_f64(seconds.min(1e6)),
        requests: args.requests,
        prompts: args.prompts.clone(),
        answers: args.tokens.clone(),
        shared: args.shared,
        hang_up: args.hang_up,
        method: args.method.clone(),
    };
    let report = load.run()?;
    print(&text(&report))?;
    if let Some(output) = output {
        output.finish_with(&serde_json::to_vec_pretty(&document(&report))?)?;
    }
    if report.failed > 0 {
        bail!(
            "expected every request to succeed, found {} that failed",
            report.failed
        );
    }
    Ok(())
}

/// The times of a report with their names.
fn times(report: &LoadReport) -> [(&'static str, &[f64]); 3] {
    [
        ("first token", &report.first),
        ("between tokens", &report.between),
        ("whole answer", &report.whole),
    ]
}

const SHARES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];

fn document(report: &LoadReport) -> serde_json::Value {
    let mut document = serde_json::json!(report);
    for (name, times) in times(report) {
        let name = format!("{}_seconds", name.replace(' ', "_"));
        document[name] = SHARES.map(|share| quantile(times, share)).to_vec().into();
    }
    document
}

fn text(report: &LoadReport) -> String {
    let LoadReport {
        model,
        seconds,
        answers,
        hung_up,
        refused,
        failed,
        ..
    } = report;
    let mut text = format!(
        "{model}: {} s, {} answers, {hung_up} clients hung up, {refused} refusals, {failed} \
         failures\n{} tokens of answers and {} tokens of prompts per second\n\n",
        digits(*seconds),
        count(*answers),
        digits(report.answer_tokens as f64 / seconds),
        digits(report.prompt_tokens as f64 / seconds),
    );
    let mut table = Table::new(["ms", "median", "90%", "99%", "longest"]);
    for (name, times) in times(report) {
        let at = |share: f64| digits(1e3 * quantile(times, share));
        let mut cells = vec![name.to_owned()];
        cells.extend(SHARES.map(at));
        table.row(cells);
    }
    text += &table.text();
    text += "\n";
    if let Some([half, end]) = report.resident {
        text += &format!(
            "resident memory of the server: {} at half of the time, {} at the end\n",
            bytes(half),
            bytes(end)
        );
    }
    for reason in &report.reasons {
        text += &format!("failed: {reason}\n");
    }
    text
}
