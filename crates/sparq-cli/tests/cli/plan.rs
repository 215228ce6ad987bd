//! `sparq plan`: predictions for a configuration and for evaluated methods.

use crate::support::{contains, document, fails, stdout};
use serde_json::{Value, json};

/// Writes the configuration of Llama-3-8B, and returns its path.
fn llama3(folder: &std::path::Path) -> String {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    });
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path.display().to_string()
}

/// Returns the row of a method by its sketch.
fn row<'a>(document: &'a Value, sketch: Option<&str>) -> &'a Value {
    let rows = document["methods"].as_array().unwrap();
    let found = rows.iter().find(|row| row["sketch"].as_str() == sketch);
    found.unwrap_or_else(|| panic!("{document}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn configuration_alone_gives_a_plan() {
    let folder = tempfile::tempdir().unwrap();
    let config = llama3(folder.path());
    let plan = document(&format!(
        "plan {config} --machine h100 --context 131072 --batch 2"
    ));
    // The model has 8.03 billion parameters. A step does not read the embedding table.
    let parameters = 8_030_261_248.0;
    assert_eq!(number(&plan["setup"]["model"]["parameters"]), parameters);
    assert_eq!(
        number(&plan["read_bytes"]),
        2.0 * (parameters - 128_256.0 * 4096.0)
    );
    let dense = row(&plan, None);
    // K and V of 32 layers, 8 heads and 128 elements of 2 bytes, and the sum of V in f32.
    let cache = 32.0 * 8.0 * 128.0 * (131_072.0 * 4.0 + 4.0);
    assert_eq!(number(&dense["cache_bytes"]), cache);
    assert_eq!(number(&dense["share_of_dense"]), 1.0);
    // 80 GB x 0.9 minus 16.06 GB of weights are 55.9 GB, enough for 3 caches of 17.2 GB.
    assert_eq!(number(&dense["largest"]["batch"]), 3.0);
    assert_eq!(dense["fits"], true);

    let sparq = row(&plan, Some("4bits"));
    let (fast, slow) = (&sparq["at_batch"], &dense["at_batch"]);
    assert!(
        number(&fast["attention_us"]) < 0.5 * number(&slow["attention_us"]),
        "{plan}"
    );
    assert_eq!(number(&fast["weights_us"]), number(&slow["weights_us"]));
    let parts = ["attention_us", "weights_us", "layers_us", "all_reduce_us"];
    let sum: f64 = parts.iter().map(|part| number(&fast[part])).sum();
    assert!((sum - number(&fast["step_us"])).abs() < 1e-6 * sum);
    assert!((number(&fast["tokens_per_s"]) - 2e6 / sum).abs() < 1e-6 * 2e6 / sum);
    assert!(number(&sparq["break_even"]) < 131_072.0);
}

#[test]
fn gpus_share_the_heads_and_the_price() {
    let folder = tempfile::tempdir().unwrap();
    let config = llama3(folder.path());
    let of = |gpus| {
        document(&format!(
            "plan {config} --gpus {gpus} --price 2.5 --all-reduce-us 10"
        ))
    };
    let (one, four) = (of(1), of(4));
    assert_eq!(number(&four["price_per_hour"]), 10.0);
    let all_reduce = |plan| number(&row(plan, None)["at_batch"]["all_reduce_us"]);
    assert_eq!((all_reduce(&four), all_reduce(&one)), (640.0, 0.0));
    let bytes = |plan| number(&row(plan, None)["cache_bytes"]);
    assert_eq!(bytes(&one), 4.0 * bytes(&four));
    let at = &row(&four, None)["largest"];
    let expected = 10.0 / 3600.0 / number(&at["tokens_per_s"]) * 1e6;
    assert!((number(&at["price_per_million"]) / expected - 1.0).abs() < 1e-9);
    let parts = ["a divisor of the 8 KV heads of the model", "found 3"];
    fails(&format!("plan {config} --gpus 3"), &parts);
}

#[test]
fn methods_and_rates_can_be_given() {
    let plan = document(
        "plan --context 4096 --method h2o:k=64 --method sparq-4bit:r=8,k=64 \
         --weights-gb-per-s 1000 --memory-gb 1",
    );
    let methods = plan["methods"].as_array().unwrap().iter();
    let names: Vec<_> = methods.map(|row| &row["method"]).collect();
    assert_eq!(names, ["dense", "h2o", "sparq"]);
    assert_eq!(
        number(&plan["setup"]["machine"]["weights_gb_per_s"]),
        1000.0
    );
    let budget = document("plan --context 4096 --budget 1/8");
    let rows = budget["methods"].as_array().unwrap();
    assert!(rows.len() > 4, "{budget}");
    for row in rows.iter().filter(|row| row["method"] != "dense") {
        assert!(number(&row["share_of_dense"]) <= 0.125, "{row}");
    }
}

#[test]
fn text_output_has_a_line_per_method() {
    let text = stdout("plan --context 100000000 --batch 4");
    let rows = [
        "dense *",
        "SparQ 4bits r=16 k=256 rows=int8 *",
        "does not fit",
    ];
    contains(&text, &["machine    H100, 80 GB"]);
    contains(&text, &rows);
}

#[test]
fn results_give_the_cheapest_method() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs.jsonl");
    let line = |method: &str, settings: Value, budget: Option<f64>, example: usize, score: f64| {
        json!({
            "kind": "example", "format": 1, "version": "0",
            "model": "embedded", "device": "flex", "dtype": "f32", "seed": 0,
            "task": "needle", "example": example.to_string(), "detail": {},
            "context": 4096, "prompt_tokens": 4000, "prompt_crc32": 1,
            "method": method, "settings": settings,
            "budget": budget, "transfer": budget.unwrap_or(1.0),
            "metric": "prefix_match", "better": "higher", "score": score,
            "steps": 1, "seconds": 1.0,
        })
        .to_string()
    };
    let sparq_of = |k| {
        json!({
            "method": "sparq", "rank": 16, "top_k": k, "local_window": k / 4, "sketch": "4bits",
            "mean_value": "paper", "group_score": "probabilities", "components": "sum_abs",
        })
    };
    let mut lines = Vec::new();
    for example in 0..4 {
        let low = if example == 0 { 0.0 } else { 1.0 };
        lines.push(line(
            "dense",
            json!({"method": "dense"}),
            None,
            example,
            1.0,
        ));
        lines.push(line("sparq-4bit", sparq_of(512), Some(0.25), example, 1.0));
        lines.push(line("sparq-4bit", sparq_of(64), Some(0.0625), example, low));
    }
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let eval = format!("plan --eval {}", path.display());
    let plan = |keep| document(&format!("{eval} --context 4096 --keep {keep}"));
    let (strict, mild) = (plan(0.99), plan(0.7));
    assert_eq!(strict["quality"]["row"]["top_k"], 512);
    assert_eq!(mild["quality"]["row"]["top_k"], 64);
    assert_eq!(number(&mild["quality"]["candidates"][0]["kept"]), 0.75);

    std::fs::write(path, lines[0].clone() + "\n").unwrap();
    fails(&eval, &["dense attention and of another method"]);
}

#[test]
fn invalid_machines_and_models_are_refused() {
    fails(
        "plan --machine abacus",
        &["--machine", "\"abacus\"", "A100"],
    );
    fails("plan --price 0", &["expected a number above 0"]);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for name in ["config.json", "machine.json"] {
        std::fs::write(at(name), "{}").unwrap();
    }
    fails(&format!("plan {}", at("config.json")), &["config.json"]);
    let machine = format!("plan --machine {}", at("machine.json"));
    fails(&machine, &["machine.json", "expected a machine"]);
}
