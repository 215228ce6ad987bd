//! The rendered part of docs/performance.md: every report as tables and plots.

use anyhow::Result;
use sparq_measure::attention::Run;

use super::text::{command, wrap};
use super::{Named, Results, plots};
use crate::baselines::Baselines;
use crate::presets::Preset;
use crate::report::{E2eReport, Head, PrefillReport, ProgramReport, Report, StartReport};
use crate::tables::{e2e, op, prefill, program, start, summary};
use sparq_output::numbers::bytes;

/// The rendered part of the page.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn performance(results: &Results) -> Result<String> {
    if results.is_empty() {
        return Ok("No results yet.\n".into());
    }
    let mut text = String::new();
    for Named { name, report } in &results.steps {
        text += &format!(
            "\n## {name}: decode steps of models\n\n{}",
            provenance(&report.head, report.baselines.as_ref())
        );
        text += &steps_section(report);
    }
    for Named { name, report } in &results.prefills {
        text += &format!(
            "\n## {name}: prefill of {}\n\n{}",
            report.run.model,
            provenance(&report.head, report.baselines.as_ref())
        );
        text += &prefill_section(report);
    }
    for Named { name, report } in &results.starts {
        text += &format!(
            "\n## {name}: start with {}\n\n{}",
            report.run.model,
            provenance(&report.head, report.baselines.as_ref())
        );
        text += &start_section(report);
    }
    for Named { name, report } in &results.programs {
        text += &format!(
            "\n## {name}: {} in the program\n\n{}",
            report.run.model,
            provenance(&report.head, report.baselines.as_ref())
        );
        text += &program_section(report);
    }
    for named in &results.operations {
        let Named { name, report } = named;
        text += &format!(
            "\n## {name}: attention\n\n{}",
            provenance(&report.head, report.baselines.as_ref())
        );
        for run in &report.runs {
            text += &run_section(run, report);
            for plot in plots::of_run(named, run)? {
                text += &format!("\n![{}](plots/{}.svg)\n", plot.title, plot.name);
            }
        }
    }
    Ok(text)
}

fn steps_section(report: &E2eReport) -> String {
    let run = &report.run;
    let mut text = format!(
        "\n### `{}` ({})\n\nMemory bandwidth: {}.\n\n{}",
        run.device,
        machine(run.gpu.as_deref(), &report.head),
        op::bandwidth(&run.bandwidth),
        e2e::steps(run, report.baselines.as_ref()).markdown()
    );
    let parts = e2e::breakdown(run);
    if !parts.is_empty() {
        text += &format!("\nThe parts of each step:\n\n{}", parts.markdown());
    }
    for line in e2e::skipped(run).iter().chain(&e2e::notes(run)) {
        text += &format!("\n{}\n", wrap(line, ""));
    }
    text
}

fn prefill_section(report: &PrefillReport) -> String {
    let run = &report.run;
    let mut text = format!(
        "\n### `{}` ({})\n\n{}\n\n{}",
        run.device,
        machine(run.gpu.as_deref(), &report.head),
        wrap(prefill::peak(report).trim_end(), ""),
        prefill::lengths(report).markdown()
    );
    for line in prefill::skipped(run) {
        text += &format!("\n{}\n", wrap(&line, ""));
    }
    text
}

fn start_section(report: &StartReport) -> String {
    let run = &report.run;
    let mut text = format!(
        "\n### `{}` ({})\n\n{}\n\n{}",
        run.device,
        machine(run.gpu.as_deref(), &report.head),
        wrap(start::model(run).trim_end(), ""),
        start::runs(report).markdown()
    );
    for line in start::failed(run) {
        text += &format!("\n{}\n", wrap(&line, ""));
    }
    text
}

fn program_section(report: &ProgramReport) -> String {
    let run = &report.run;
    format!(
        "\n### `{}` ({})\n\n{}\n\n{}",
        run.device,
        machine(run.gpu.as_deref(), &report.head),
        wrap(program::model(run).trim_end(), ""),
        program::rates(report).markdown()
    )
}

fn run_section(run: &Run, report: &Report) -> String {
    let baselines = report.baselines.as_ref();
    let mut text = format!(
        "\n### `{}` ({})\n\nMemory bandwidth: {}.\n\n{}",
        run.device,
        machine(run.gpu.as_deref(), &report.head),
        op::bandwidth(&run.bandwidth),
        summary::table(run, baselines).markdown()
    );
    if report.preset == Preset::Goals {
        text += &format!(
            "\nThe goals, set for one H100 (f16, r = 32, k = 128, captured); ✓ marks a goal that is \
             reached:\n\n{}",
            summary::goals(run, baselines).markdown()
        );
    }
    let stages = op::stages(run);
    if !stages.is_empty() {
        text += &format!(
            "\nThe stages of captured SparQ steps:\n\n{}",
            stages.markdown()
        );
    }
    let details = op::details(run, baselines);
    if !details.is_empty() {
        text += &format!(
            "\n<details><summary>Every row</summary>\n\n{}\n</details>\n",
            details.markdown()
        );
    }
    for line in op::skipped(run).iter().chain(&op::notes(run)) {
        text += &format!("\n{}\n", wrap(&line.replace('*', "\\*"), ""));
    }
    text
}

/// Date, commit, machine, baseline and command of a report.
fn provenance<R>(head: &Head, baselines: Option<&Baselines<R>>) -> String {
    let host = &head.machine;
    let memory = host.memory_bytes.map(|size| bytes(size as f64));
    let mut text = format!(
        "- Date: {}, commit {}\n- Machine: {}, {} cores{}, {}-{}\n",
        head.date,
        commit(head),
        host.cpu.as_deref().unwrap_or("unnamed processor"),
        host.cores,
        memory.map_or(String::new(), |size| format!(", {size} of memory")),
        host.arch,
        host.os
    );
    if let Some(baselines) = baselines {
        let device = baselines.device.as_deref().unwrap_or("an unnamed device");
        let baseline = match (&baselines.llama_cpp, &baselines.torch) {
            (Some(version), _) => format!("llama.cpp {version}"),
            (None, Some(version)) => format!("PyTorch {version}"),
            (None, None) => "PyTorch of unknown version".into(),
        };
        text += &format!("- Baseline: {baseline} on {device}\n");
    }
    format!("{text}\n{}", command(&head.command))
}

/// The GPU, or the processor of a run on a CPU.
pub fn machine(gpu: Option<&str>, head: &Head) -> String {
    match gpu {
        Some(gpu) => gpu.to_owned(),
        None => format!(
            "{}, {} cores",
            head.machine.cpu.as_deref().unwrap_or("unnamed processor"),
            head.machine.cores
        ),
    }
}

/// The date without the time.
pub fn day(head: &Head) -> &str {
    head.date.split('T').next().unwrap_or_default()
}

/// The first digits of the commit, with a remark if files differed from it.
pub fn commit(head: &Head) -> String {
    let Some(commit) = &head.commit else {
        return "unknown".into();
    };
    let (hash, changes) = match commit.split_once('+') {
        Some((hash, _)) => (hash, " with changes"),
        None => (commit.as_str(), ""),
    };
    format!("{}{changes}", hash.chars().take(10).collect::<String>())
}
