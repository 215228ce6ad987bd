//! The method that chooses: each step is dense attention or SparQ, and the choice follows the cost model.

mod common;

use burn::tensor::{FloatDType, Tensor};
use common::{Noise, cache_of, devices, max_difference};
use sparq::cost::StepCosts;
use sparq::methods::Auto;
use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqConfig};

/// Costs under which the step of this file breaks even within the lengths that it tries.
const COSTS: StepCosts = StepCosts {
    dense_us: 1.0,
    sparq_us: 2.0,
    gb_per_s: 20.0,
    scores_per_us: 1e4,
};

fn auto(sketch: Sketch) -> Auto {
    Auto {
        sparq: SparqConfig::new(4, 8).with_sketch(sketch),
        group_size: 2,
        costs: COSTS,
    }
}

fn cache_config(sketch: Sketch) -> KvCacheConfig {
    KvCacheConfig::new(1, 2, 16)
        .with_capacity(200)
        .with_dtype(FloatDType::F32)
        .with_sketch(Some(sketch))
}

#[test]
fn a_growing_cache_changes_over_once_at_the_break_even_length() {
    for device in devices() {
        for sketch in [Sketch::Full, Sketch::Bits4] {
            let auto = auto(sketch);
            let config = cache_config(sketch);
            let at = COSTS.break_even(&auto.step(&config), &auto.sparq).unwrap();
            assert!((20..200).contains(&at), "{at}");
            let mut noise = Noise(3);
            let (k, v) = (
                noise.tensor([1, 2, 200, 16], &device),
                noise.tensor([1, 2, 200, 16], &device),
            );
            let q: Tensor<4> = noise.tensor([1, 4, 1, 16], &device);
            for len in [4, 8, 9, at - 1, at, at + 1, 200] {
                let part = |t: &Tensor<4>| t.clone().slice_dim(2, 0..len);
                let cache = || cache_of(&part(&k), &part(&v), FloatDType::F32, Some(sketch));
                let decode = |method: Method| method.decode(q.clone(), &mut cache()).unwrap();
                let chosen = Method::from(auto).at(&config, len);
                assert_eq!(chosen != Method::DENSE, len >= at);
                let found = decode(auto.into());
                assert!(max_difference(&found, &decode(chosen)) < 1e-5, "{len}");
                // The other method would have given something else.
                if len > auto.sparq.top_k {
                    let other = match len >= at {
                        true => Method::DENSE,
                        false => auto.sparq.into(),
                    };
                    assert!(max_difference(&found, &decode(other)) > 1e-3, "{len}");
                }
            }
        }
    }
}

#[test]
fn the_sketch_is_there_while_steps_are_dense() {
    let method = Method::from(auto(Sketch::Bits4));
    assert_eq!(method.sketch(), Some(Sketch::Bits4));
    for device in devices() {
        let mut noise = Noise(4);
        let k = noise.tensor([1, 2, 5, 16], &device);
        let mut without: KvCache = cache_of(&k, &k, FloatDType::F32, None);
        let q = noise.tensor([1, 4, 1, 16], &device);
        let error = method.decode(q, &mut without).unwrap_err().to_string();
        assert!(
            error.contains("the method auto needs codes of 4 bits"),
            "{error}"
        );
    }
}

#[test]
fn settings_and_costs_are_checked_and_stored() {
    let good = Method::from(auto(Sketch::Full));
    assert!(good.validate(16).is_ok());
    assert!(good.validate(3).unwrap_err().to_string().contains("rank"));
    for device in devices() {
        let mut noise = Noise(5);
        let k = noise.tensor([1, 2, 20, 16], &device);
        let mut cache = cache_of(&k, &k, FloatDType::F32, Some(Sketch::Full));
        // One query head for each key/value head, where the method was made for two.
        let q = noise.tensor([1, 2, 1, 16], &device);
        let error = good.decode(q, &mut cache).unwrap_err().to_string();
        assert!(
            error.contains("group_size") && error.contains("[1, 4, 1, 16]"),
            "{error}"
        );
    }
    let bad = Auto {
        costs: StepCosts {
            gb_per_s: f64::INFINITY,
            ..COSTS
        },
        ..auto(Sketch::Full)
    };
    let error = Method::from(bad).validate(16).unwrap_err().to_string();
    assert!(
        error.contains("gb_per_s") && error.contains("inf"),
        "{error}"
    );

    let json = serde_json::to_string(&good).unwrap();
    assert!(json.contains(r#""method":"auto""#), "{json}");
    assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), good);
}
