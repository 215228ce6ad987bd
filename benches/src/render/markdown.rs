//! The text around the tables.

use anyhow::Result;

use super::{Named, plots, summary};
use crate::compare;
use crate::preset::Preset;
use crate::report::{Report, Run};
use crate::table::bytes;

const COLUMNS: &str = "us: medians in microseconds, the quickest of eager and captured calls and of the settings. gain: the quickest dense attention of the line \
over the quickest SparQ. floor: the bytes that this SparQ has to move over the memory bandwidth measured in the same run.";

/// The rendered part of docs/performance.md.
pub fn performance(reports: &[Named]) -> Result<String> {
    if reports.is_empty() {
        return Ok("No results yet.\n".into());
    }
    let mut text = String::new();
    for named in reports {
        let Named { name, report } = named;
        text += &format!("\n## {name}\n\n{}\n", provenance(report));
        for run in &report.runs {
            text += &run_section(run, report);
            for plot in plots::of_run(named, run)? {
                text += &format!("\n![{}](plots/{}.svg)\n", plot.title, plot.name);
            }
        }
    }
    Ok(text)
}

/// The rendered part of the README: a summary for each report that is meant for figures.
pub fn readme(reports: &[Named]) -> String {
    let wanted = reports
        .iter()
        .filter(|named| named.report.preset != Preset::Quick);
    let sections: Vec<String> = wanted
        .flat_map(|named| {
            let report = &named.report;
            report.runs.iter().map(move |run| {
                format!(
                    "{}, {}, commit {}:\n\n{}",
                    hardware(run, report),
                    day(report),
                    commit(report),
                    summary::table(run, report.peers.as_ref()).markdown()
                )
            })
        })
        .collect();
    match sections.is_empty() {
        true => "No results yet.\n".into(),
        false => format!(
            "{}\n{COLUMNS} Every row: [docs/performance.md](docs/performance.md).\n",
            sections.join("\n")
        ),
    }
}

fn provenance(report: &Report) -> String {
    let machine = &report.machine;
    let memory = machine
        .memory_bytes
        .map(|memory| format!(", {} of memory", bytes(memory as f64)))
        .unwrap_or_default();
    let peers = report.peers.as_ref().map(|peers| {
        format!(
            "\n\nPyTorch{} on {}.",
            peers
                .torch
                .as_ref()
                .map(|version| format!(" {version}"))
                .unwrap_or_default(),
            peers.device.as_deref().unwrap_or("an unnamed device")
        )
    });
    format!(
        "{}, commit {}, {} ({} cores{memory}, {}-{}):\n`{}`{}",
        report.date,
        commit(report),
        machine.cpu.as_deref().unwrap_or("unnamed processor"),
        machine.cores,
        machine.arch,
        machine.os,
        report.command,
        peers.unwrap_or_default()
    )
}

fn run_section(run: &Run, report: &Report) -> String {
    let peers = report.peers.as_ref();
    let mut text = format!(
        "\n### {}\n\nMemory bandwidth: {}.\n\n{}\n{COLUMNS}\n",
        hardware(run, report),
        compare::bandwidth(&run.bandwidth),
        summary::table(run, peers).markdown()
    );
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
fn hardware(run: &Run, report: &Report) -> String {
    match &run.gpu {
        Some(gpu) => format!("`{}` ({gpu})", run.device),
        None => format!(
            "`{}` ({}, {} cores)",
            run.device,
            report.machine.cpu.as_deref().unwrap_or("unnamed processor"),
            report.machine.cores
        ),
    }
}

fn day(report: &Report) -> &str {
    report.date.split('T').next().unwrap_or_default()
}

/// The first digits of the commit; `+changes` stays.
fn commit(report: &Report) -> String {
    let Some(commit) = &report.commit else {
        return "unknown".into();
    };
    let (hash, changes) = match commit.split_once('+') {
        Some((hash, _)) => (hash, " with changes"),
        None => (commit.as_str(), ""),
    };
    format!("{}{changes}", hash.chars().take(10).collect::<String>())
}
