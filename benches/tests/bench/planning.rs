//! The predictions of planning, compared with the committed results.

use std::path::Path;

use sparq_benches::render::planning::{prediction, shipped, shipped_costs, unseen};
use sparq_benches::render::{Results, read_all};
use sparq_measure::attention::Run;
use sparq_measure::fit::decisions;

fn results() -> Results {
    read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

#[test]
fn planning_predicts_attention() {
    let results = results();
    let runs = results
        .operations
        .iter()
        .flat_map(|named| &named.report.runs);
    let mut seen = 0;
    // The figures are those of an H100 and of a CPU. None are fitted to Vulkan, whose kernels take
    // other times.
    let fitted = |run: &&Run| match run.device.as_str() {
        "cuda" => run.gpu.as_ref().is_some_and(|gpu| gpu.contains("H100")),
        device => device == "flex",
    };
    for run in runs.filter(fitted) {
        let (device, errors) = (&run.device, shipped(run));
        seen += errors.count();
        assert!(errors.mean() < 0.15, "{device}: {}", errors.mean());
        assert!(errors.worst() < 0.60, "{device}: {}", errors.worst());
        let found = decisions(&[run], &shipped_costs(run));
        assert!(found.pairs > 0 && found.wrong == 0, "{device}: {found:?}");
        // The results of the CPU have two head configurations. With one of them left out, the fit
        // cannot separate the time per score from the time per byte.
        let bound = if run.gpu.is_some() { 0.20 } else { 0.60 };
        let errors = unseen(run).unwrap();
        let mean = errors.mean();
        assert!(mean < bound, "{device}: {mean} unseen");
    }
    assert!(seen >= 60, "{seen}");
}

#[test]
fn planning_predicts_whole_steps() {
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
