//! The bytes that methods move, settings for a budget, and methods as text.

use super::*;

/// One head of d = 64 in 16 bits.
const SHAPE: CacheShape = CacheShape {
    head_dim: 64,
    kv_heads: 1,
    layers: 1,
    element_bytes: 2,
};

#[test]
fn transfers_follow_each_methods_formula() {
    // At S = 1000, dense attention moves 2 S d + 2 d elements.
    let shape = SHAPE;
    let elements = |method: Method| method.transfers(&shape, 1000).elements;
    let projected = 1000 * 16 + 2 * 100 * 64 + 3 * 64 + 16 + 64 * 16;
    for (method, expected) in [
        ("dense", 128_128),
        ("h2o:k=100", 2 * 100 * 64 + 128 + 2000),
        ("lm-infinite:k=100", 2 * 100 * 64 + 128),
        ("oracle:k=100", 2 * 100 * 64 + 128),
        ("flexgen:k=100", 1000 * 64 + 100 * 64 + 128),
        // Six of 63 pages are selected.
        ("quest:k=100", 2 * 63 * 64 + 2 * 96 * 64 + 4 * 64),
        (
            "hybrid:r=16,k=100,m=400",
            2 * 125 * 16 + 400 * 16 + 2 * 100 * 64 + 5 * 64,
        ),
        ("low-rank:r=16,k=100", projected),
    ] {
        assert_eq!(elements(method.parse().unwrap()), expected, "{method}");
    }
    let two_stage = SparqVariant {
        second_rank: Some(32),
        keys: KeyPrecision::Bits3,
        ..SparqVariant::new(8, 100)
    };
    let (scores, rest) = (1000 * 8 + 250 * 24, 2 * 100 * 64 + 4 * 64);
    let moved = Method::from(two_stage).transfers(&shape, 1000);
    assert_eq!(
        (moved.elements, moved.bits),
        (scores + rest, 3 * scores + 16 * rest)
    );
    let plain = Method::from(SparqVariant::new(8, 100)).transfers(&shape, 1000);
    assert_eq!(
        plain,
        Method::from(SparqConfig::new(8, 100)).transfers(&shape, 1000)
    );
    for name in Method::names() {
        let method: Method = name.parse().unwrap();
        // H2O always reads and writes its sums.
        let more = if name == "h2o" { 2 * 128 } else { 0 };
        let dense = Transfers::dense(&shape, 128).elements;
        assert_eq!(
            method.transfers(&shape, 128).elements,
            dense + more,
            "{name}"
        );
    }
}

#[test]
fn a_budget_is_met_and_nearly_used_up() {
    let shape = SHAPE;
    for seq_len in [1024, 4096, 16384] {
        let dense = Transfers::dense(&shape, seq_len).bytes();
        for ratio in [0.5, 0.25, 0.125, 0.0625, 0.03125] {
            for name in Method::names() {
                let Ok(method) = Method::for_budget(name, 64, seq_len, ratio) else {
                    // Bounds and a page take 2 S/p + 2 p K rows, at least 4 sqrt(S).
                    let rows = 2.0 * seq_len as f64 * ratio;
                    let small = name == "quest" && 4.0 * (seq_len as f64).sqrt() + 4.0 > rows;
                    assert!(
                        small || name == "dense" || name == "flexgen",
                        "{name} at {ratio}"
                    );
                    continue;
                };
                method.validate(64).unwrap();
                let share = method.transfers(&shape, seq_len).bytes() / dense;
                // Quest rounds to whole pages, the coarsest of all methods.
                let positions = if name == "quest" { 64.0 } else { 4.0 };
                let rounding = positions / seq_len as f64;
                assert!(
                    share <= ratio && share > ratio - rounding - 0.002,
                    "{method}: {share} of {ratio}"
                );
            }
        }
    }
    for ratio in [0.0, -1.0, 1.5, f64::NAN, 1e-9] {
        for name in Method::names() {
            let error = Method::for_budget(name, 64, 4096, ratio).unwrap_err();
            assert!(
                matches!(error, SparqError::Budget { .. }),
                "{name}: {error}"
            );
        }
    }
    assert_eq!(
        Method::for_budget("dense", 64, 4096, 1.0).unwrap(),
        Method::DENSE
    );
}

#[test]
fn methods_round_trip_through_text_and_json() {
    for name in Method::names() {
        let method = Method::named(name).unwrap();
        assert_eq!(
            method.to_string().parse::<Method>().unwrap(),
            method,
            "{name}"
        );
        let json = serde_json::to_string(&method).unwrap();
        assert_eq!(
            serde_json::from_str::<Method>(&json).unwrap(),
            method,
            "{json}"
        );
    }
    let parsed = |text: &str| text.parse::<Method>().unwrap();
    let h2o = |top_k, local_window| H2o {
        top_k,
        local_window,
    };
    assert_eq!(parsed("h2o:k=64"), H2o::new(64).into());
    assert_eq!(parsed("h2o:k=2"), H2o::new(2).into());
    assert_eq!(parsed("h2o:k=64,l=3"), h2o(64, 3).into());
    assert_eq!(parsed("lm-infinite:k=9"), LmInfinite::new(9).into());
    assert_eq!(parsed("hybrid:k=64,r=4"), Hybrid::new(4, 64).into());
    assert_eq!(
        parsed("sparq-two-stage:then=none").to_string(),
        "sparq-variant:r=16,then=none,k=128,l=32,keys=4bits,temperature=coverage,mean=paper,\
         score=probabilities,components=sum-abs"
    );
    for (text, message) in [
        ("h3o", "method: expected one of dense, sparq, sparq-8bit"),
        (
            "dense:k=1",
            "setting of the method: expected one of rows, found k",
        ),
        ("h2o:k", "setting of a method: expected key=value, found k"),
        (
            "h2o:k=many",
            "setting of the method: expected k=a whole number, found many",
        ),
        (
            "sparq:sketch=5bits",
            "setting of the method: expected sketch=one of full, 8bits, 4bits, found 5bits",
        ),
    ] {
        let error = text.parse::<Method>().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn a_compression_is_met_and_nearly_used_up() {
    let shape = CacheShape {
        head_dim: 128,
        kv_heads: 8,
        layers: 1,
        element_bytes: 2,
    };
    for sketch in SKETCHES {
        for seq_len in [4096, 16384, 131072] {
            for ratio in [0.5, 0.25, 0.125, 0.0625] {
                let config = SparqConfig::new(1, 1)
                    .with_sketch(sketch)
                    .for_compression(128, seq_len, ratio)
                    .unwrap();
                config.validate(128).unwrap();
                let share = Transfers::sparq(&shape, seq_len, &config).bytes()
                    / Transfers::dense(&shape, seq_len).bytes();
                assert!(
                    share <= ratio && share > 0.98 * ratio,
                    "{sketch:?} {seq_len} {ratio}: {share}"
                );
            }
        }
    }
    let error = SparqConfig::new(1, 1)
        .for_compression(128, 64, 0.001)
        .unwrap_err();
    assert!(error.to_string().contains("0.001"), "{error}");
    for ratio in [0.0, 1.5] {
        let refused = SparqConfig::new(1, 1).for_compression(128, 4096, ratio);
        assert!(refused.is_err(), "{ratio}");
    }
}

#[test]
fn json_refuses_unknown_fields() {
    let config = SparqConfig::new(16, 128)
        .with_sketch(Sketch::Bits4)
        .with_mean_value(MeanValue::Never);
    let json = serde_json::to_string(&config).unwrap();
    assert!(json.contains(r#""sketch":"4bits""#), "{json}");
    assert_eq!(serde_json::from_str::<SparqConfig>(&json).unwrap(), config);
    assert!(serde_json::from_str::<SparqConfig>(&json.replace("rank", "rang")).is_err());
    let method = Method::from(config);
    assert_eq!(
        serde_json::from_str::<Method>(&serde_json::to_string(&method).unwrap()).unwrap(),
        method
    );
}

#[test]
fn budgets_count_the_layers_of_a_model() {
    let shape = CacheShape {
        kv_heads: 2 * 10,
        layers: 10,
        ..SHAPE
    };
    let config = SparqConfig::new(16, 100).with_sketch(Sketch::Bits4);
    let shared = config.with_anchors(Anchors::Number(3));
    // 3 layers of 2 heads select, and those of 7 layers move rows and positions alone.
    let rows = 2 * 100 * 64 + 2 * 64;
    let moved = Transfers::sparq(&shape, 1000, &shared);
    let selecting = 6 * (1000 * 16 + 2 * 64);
    assert_eq!(moved.elements, 20 * rows + selecting + 14 * 100);
    let bits = 20 * rows * 16 + 6 * (1000 * 16 * 4 + 2 * 64 * 16) + 14 * 100 * 32;
    assert_eq!(moved.bits, bits);
    // A single layer selects.
    let [one, own] = [shared, config].map(|config| Transfers::sparq(&SHAPE, 1000, &config));
    assert_eq!(one, own);

    let budget = Budget::new(64, 1000, 0.125).unwrap();
    let at = |config: SparqConfig, budget: Budget| Method::from(config).at_budget(&budget).unwrap();
    let fitted = at(shared, budget.with_layers(10));
    let dense = Transfers::dense(&shape, 1000).bytes();
    let share = fitted.transfers(&shape, 1000).bytes() / dense;
    assert!(share <= 0.125 && share > 0.9 * 0.125, "{share}");
    assert_eq!(fitted.anchors(), Anchors::Number(3));
    // For one layer the anchors do not matter.
    let (Method::Sparq(one), Method::Sparq(own)) = (at(shared, budget), at(config, budget)) else {
        unreachable!()
    };
    assert_eq!((one.rank, one.top_k), (own.rank, own.top_k));
}
