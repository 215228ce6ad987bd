//! Texts of metrics, budgets and estimates.

use sparq_output::numbers::percent;

use crate::{Estimate, Metric, Record};

/// Returns the axis label of a metric.
pub fn axis(metric: Metric) -> &'static str {
    match metric {
        Metric::PrefixMatch => "share of correct answers",
        Metric::Characters => "characters before the first error",
        Metric::BitsPerCharacter => "bits per character",
        Metric::RougeL => "ROUGE-L F",
        Metric::StringMatch => "share of references found",
        Metric::Accuracy => "accuracy",
        Metric::FieldMatch => "share of fields",
        Metric::Similarity => "similarity to the reference",
        Metric::Agreement => "share of dense attention's tokens",
    }
}

/// Returns the axis label of the differences of a metric to dense attention.
pub fn difference_axis(metric: Metric) -> &'static str {
    match metric {
        Metric::PrefixMatch => "share of correct answers, less dense",
        Metric::Characters => "characters before the first error, less dense",
        Metric::BitsPerCharacter => "bits per character, less dense (left is better)",
        Metric::RougeL => "ROUGE-L F, less dense",
        Metric::StringMatch => "share of references found, less dense",
        Metric::Accuracy => "accuracy, less dense",
        Metric::FieldMatch => "share of fields, less dense",
        Metric::Similarity => "similarity to the reference, less dense",
        Metric::Agreement => "share of dense attention's tokens, less 1",
    }
}

/// Returns the number of decimals of a metric.
pub fn digits(metric: Metric) -> usize {
    match metric {
        Metric::Characters => 1,
        _ => 3,
    }
}

/// Formats a mean and its standard error with the decimals of a metric: `0.750 ± 0.250`.
pub fn estimate(estimate: &Estimate, metric: Metric, signed: bool) -> String {
    estimate.text(digits(metric), signed)
}

/// Formats a budget as a fraction, `1/8`, or as a percentage if the denominator is not an integer.
pub fn budget(share: f64) -> String {
    let parts = 1.0 / share;
    match (parts - parts.round()).abs() < 1e-6 * parts {
        true => format!("1/{parts:.0}"),
        false => percent(share),
    }
}

/// Returns the records without their contexts, which averages over all contexts.
pub fn pooled(records: &[Record]) -> Vec<Record> {
    let pooled = records.iter().cloned().map(|record| Record {
        context: None,
        ..record
    });
    pooled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_fractions_or_percentages() {
        assert_eq!(
            [budget(0.125), budget(0.3), budget(1.0)],
            ["1/8", "30.0%", "1/1"]
        );
    }
}
