//! What planning predicts, held to the committed results.

use std::path::Path;

use sparq_benches::render::planning::{prediction, shipped, shipped_costs, unseen};
use sparq_benches::render::{Results, read_all};
use sparq_measure::attention::Run;
use sparq_measure::fit::decisions;

fn results() -> Results {
    read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

/// The figures in the library fit the results they come from, and figures that have not seen a shape still foretell it.
#[test]
fn attention_is_predicted() {
    let results = results();
    let runs = results
        .operations
        .iter()
        .flat_map(|named| &named.report.runs);
    let mut seen = 0;
    // The kernels take other times by Vulkan; no figures are fitted to those.
    let fitted = |run: &&Run| matches!(run.device.as_str(), "cuda" | "flex");
    for run in runs.filter(fitted) {
        let errors = shipped(run);
        seen += errors.count();
        assert!(errors.mean() < 0.15, "{}: {}", run.device, errors.mean());
        assert!(errors.worst() < 0.60, "{}: {}", run.device, errors.worst());
        let found = decisions(&[run], &shipped_costs(run));
        assert!(
            found.pairs > 0 && found.wrong == 0,
            "{}: {found:?}",
            run.device
        );
        // The CPU's results have two kinds of heads, and one of them alone cannot tell the time of scores from that of bytes.
        let bound = if run.gpu.is_some() { 0.20 } else { 0.60 };
        let errors = unseen(run).unwrap();
        assert!(
            errors.mean() < bound,
            "{}: {} unseen",
            run.device,
            errors.mean()
        );
    }
    assert!(seen >= 60, "{seen}");
}

/// A whole step is the sum of its parts.
#[test]
fn whole_steps_are_predicted() {
    let mut steps = 0;
    for named in &results().steps {
        for row in &named.report.run.rows {
            let times = prediction(&named.report, row).zip(row.captured_us());
            let Some((predicted, measured)) = times else {
                continue;
            };
            steps += 1;
            let error = predicted.total_us() / measured - 1.0;
            assert!(error.abs() < 0.10, "{}: {error}", row.label());
        }
    }
    assert!(steps >= 2, "{steps}");
}
