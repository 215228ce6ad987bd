//! The text around the tables.

use anyhow::Result;

use super::{Named, Results, plots, summary};
use crate::compare;
use crate::e2e::{self, report::E2eReport};
use crate::preset::Preset;
use crate::report::{Head, Report, Run};
use crate::table::bytes;

const COLUMNS: &str = "us: medians in microseconds, the quickest of eager and captured calls and of the settings. gain: the quickest dense attention of the line \
over the quickest SparQ. floor: the bytes that this SparQ has to move over the memory bandwidth measured in the same run.";

const STAGES: &str = "The stages of captured SparQ steps; a stage's time is the median of steps that end after it less that of steps that end before it, its bytes are what \
has to move when the scores go through memory in 32 bits:";

/// The rendered part of docs/performance.md.
pub fn performance(results: &Results) -> Result<String> {
    if results.is_empty() {
        return Ok("No results yet.\n".into());
    }
    let mut text = String::new();
    for Named { name, report } in &results.steps {
        let peers = report.peers.as_ref();
        let torch = peers.map(|peers| (peers.torch.as_deref(), peers.device.as_deref()));
        text += &format!(
            "\n## {name}\n\nWhole decode steps of models.\n\n{}\n",
            provenance(&report.head, torch)
        );
        text += &steps_section(report);
    }
    for named in &results.operations {
        let Named { name, report } = named;
        let peers = report.peers.as_ref();
        let torch = peers.map(|peers| (peers.torch.as_deref(), peers.device.as_deref()));
        text += &format!("\n## {name}\n\n{}\n", provenance(&report.head, torch));
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
        "\n### {}\n\nMemory bandwidth: {}.\n\n{}\nWhere the time goes:\n\n{}",
        hardware(&run.device, run.gpu.as_deref(), &report.head),
        compare::bandwidth(&run.bandwidth),
        e2e::steps(run, report.peers.as_ref()).markdown(),
        e2e::breakdown(run).markdown()
    );
    let skipped = e2e::skipped(run);
    let skipped = skipped.iter().map(|line| format!("not measured: {line}"));
    for line in skipped.chain(e2e::notes(run)) {
        text += &format!("\n{line}\n");
    }
    text
}

/// The rendered part of the README: a summary for each report that is meant for figures.
pub fn readme(results: &Results) -> String {
    let wanted = results
        .operations
        .iter()
        .filter(|named| named.report.preset != Preset::Quick);
    let operations = wanted.flat_map(|named| {
        let report = &named.report;
        report.runs.iter().map(move |run| {
            let peers = report.peers.as_ref();
            let table = match report.preset {
                Preset::Goals => summary::goals(run, peers),
                _ => summary::table(run, peers),
            };
            format!(
                "{}, {}, commit {}:\n\n{}",
                hardware(&run.device, run.gpu.as_deref(), &report.head),
                day(&report.head),
                commit(&report.head),
                table.markdown()
            )
        })
    });
    let steps = results
        .steps
        .iter()
        .filter(|named| !named.report.run.is_tiny());
    let steps = steps.map(|Named { report, .. }| {
        format!(
            "Whole decode steps, {}, {}, commit {}:\n\n{}",
            hardware(&report.run.device, report.run.gpu.as_deref(), &report.head),
            day(&report.head),
            commit(&report.head),
            e2e::steps(&report.run, report.peers.as_ref()).markdown()
        )
    });
    let sections: Vec<String> = operations.chain(steps).collect();
    match sections.is_empty() {
        true => "No results yet.\n".into(),
        false => format!(
            "{}\n{COLUMNS} Every row: [docs/performance.md](docs/performance.md).\n",
            sections.join("\n")
        ),
    }
}

fn provenance(head: &Head, torch: Option<(Option<&str>, Option<&str>)>) -> String {
    let machine = &head.machine;
    let memory = machine
        .memory_bytes
        .map(|memory| format!(", {} of memory", bytes(memory as f64)))
        .unwrap_or_default();
    let peers = torch.map(|(version, device)| {
        format!(
            "\n\nPyTorch{} on {}.",
            version
                .map(|version| format!(" {version}"))
                .unwrap_or_default(),
            device.unwrap_or("an unnamed device")
        )
    });
    format!(
        "{}, commit {}, {} ({} cores{memory}, {}-{}):\n`{}`{}",
        head.date,
        commit(head),
        machine.cpu.as_deref().unwrap_or("unnamed processor"),
        machine.cores,
        machine.arch,
        machine.os,
        head.command,
        peers.unwrap_or_default()
    )
}

fn run_section(run: &Run, report: &Report) -> String {
    let peers = report.peers.as_ref();
    let mut text = format!(
        "\n### {}\n\nMemory bandwidth: {}.\n\n{}\n{COLUMNS}\n",
        hardware(&run.device, run.gpu.as_deref(), &report.head),
        compare::bandwidth(&run.bandwidth),
        summary::table(run, peers).markdown()
    );
    if report.preset == Preset::Goals {
        text += &format!(
            "\nThe goals, set for one H100 (fp16, r = 32, k = 128, captured); ✓ marks those that are reached:\n\n{}",
            summary::goals(run, peers).markdown()
        );
    }
    let stages = compare::stages(run);
    if !stages.is_empty() {
        text += &format!("\n{STAGES}\n\n{}", stages.markdown());
    }
    let details = compare::details(run, peers);
    if !details.is_empty() {
        text += &format!(
            "\n<details><summary>Every row</summary>\n\n{}\n</details>\n",
            details.markdown()
        );
    }
    let skipped = compare::skipped(run);
    let skipped = skipped.iter().map(|line| format!("not measured: {line}"));
    for line in skipped.chain(compare::notes(run)) {
        text += &format!("\n{}\n", line.replace('*', "\\*"));
    }
    text
}

/// The device with what it runs on.
fn hardware(device: &str, gpu: Option<&str>, head: &Head) -> String {
    match gpu {
        Some(gpu) => format!("`{device}` ({gpu})"),
        None => format!(
            "`{device}` ({}, {} cores)",
            head.machine.cpu.as_deref().unwrap_or("unnamed processor"),
            head.machine.cores
        ),
    }
}

fn day(head: &Head) -> &str {
    head.date.split('T').next().unwrap_or_default()
}

/// The first digits of the commit; `+changes` stays.
fn commit(head: &Head) -> String {
    let Some(commit) = &head.commit else {
        return "unknown".into();
    };
    let (hash, changes) = match commit.split_once('+') {
        Some((hash, _)) => (hash, " with changes"),
        None => (commit.as_str(), ""),
    };
    format!("{}{changes}", hash.chars().take(10).collect::<String>())
}
