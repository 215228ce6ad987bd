//! The table of all tasks at one context.

use sparq_output::numbers;
use sparq_output::table::{Cell, Table};

use super::{Section, distinct, format};
use crate::summary::REFERENCE;
use crate::{Record, SummaryRow, TaskName, summarize};

/// Makes a section with a table for each context in which methods were compared in several tasks,
/// if there is one. The records are those of one model and protocol.
pub fn section(model: &str, records: &[Record]) -> Option<Section> {
    let rows = summarize(records);
    let order: Vec<&str> = distinct(records.iter().map(|record| record.method.as_str())).collect();
    let mut contexts: Vec<usize> = distinct(rows.iter().filter_map(|row| row.context)).collect();
    contexts.sort();
    let tables = contexts.into_iter().filter_map(|context| {
        let of_context = |row: &&SummaryRow| row.context == Some(context);
        let rows: Vec<&SummaryRow> = rows.iter().filter(of_context).collect();
        table(context, &rows, &order)
    });
    let tables: Vec<Table> = tables.collect();
    (!tables.is_empty()).then(|| Section {
        title: format!("All tasks, {model}"),
        text:
            "The scores of dense attention, and below them the mean differences to it on the same \
               examples, with standard errors. More is better, but less for bpc."
                .into(),
        tables,
        figures: vec![],
    })
}

/// Makes the table of one context, with a column for each task in which a method was compared with
/// dense attention. The methods of a budget have the order given.
fn table(context: usize, rows: &[&SummaryRow], order: &[&str]) -> Option<Table> {
    let of = |task: TaskName| {
        let mut rows = rows.iter();
        rows.any(|row| row.task == task && row.method != REFERENCE)
    };
    let tasks: Vec<TaskName> = TaskName::ALL
        .iter()
        .copied()
        .filter(|&task| of(task))
        .collect();
    if tasks.len() < 2 {
        return None;
    }
    let mut headings = vec![numbers::positions(context), "budget".to_owned()];
    headings.extend(tasks.iter().map(|task| task.name().replace('_', "-")));
    let mut table = Table::new(headings);
    let dense = |task: TaskName| {
        let mut rows = rows.iter();
        rows.find(|row| row.task == task && row.method == REFERENCE)
    };
    table.row(
        [Cell::from("examples"), "-".into()].into_iter().chain(
            tasks
                .iter()
                .map(|&task| dense(task).map_or("-".into(), |row| row.score.n.to_string().into())),
        ),
    );
    let mut methods: Vec<(&str, Option<f64>)> =
        distinct(rows.iter().map(|row| (row.method.as_str(), row.budget))).collect();
    // Settings without a budget are placed by the bytes that they move.
    let share = |(method, budget): (&str, Option<f64>)| {
        let mut rows = rows.iter();
        let first = rows.find(|row| (row.method.as_str(), row.budget) == (method, budget));
        budget.or(first.map(|row| row.transfer)).unwrap_or(1.0)
    };
    let place = |method: &str| order.iter().position(|&other| other == method);
    methods.sort_by(|&a, &b| {
        let by_share = share(b).total_cmp(&share(a));
        by_share.then(place(a.0).cmp(&place(b.0)))
    });
    for (method, budget) in methods {
        let moved = share((method, budget));
        let cell = |&task: &TaskName| {
            let mut rows = rows.iter();
            let same = rows
                .find(|row| (row.task, row.method.as_str(), row.budget) == (task, method, budget));
            let signed = method != REFERENCE;
            let estimate = same.and_then(|row| match signed {
                true => row.difference,
                false => Some(row.score),
            });
            match estimate {
                Some(found) => {
                    Cell::number(format::estimate(&found, task.metric(), signed), found.mean)
                }
                None => "-".into(),
            }
        };
        let text = match budget {
            Some(budget) => format::budget(budget),
            None if method == REFERENCE => "-".into(),
            None => numbers::percent(moved),
        };
        let budget = Cell::number(text, moved);
        table.row(
            [Cell::from(method), budget]
                .into_iter()
                .chain(tasks.iter().map(cell)),
        );
    }
    Some(table)
}
