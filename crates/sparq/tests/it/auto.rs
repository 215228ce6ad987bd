//! The method `auto`: each step is dense attention or SparQ, whichever costs less in the model.

use sparq::cost::StepCosts;
use sparq::methods::Auto;
use sparq::{KvCacheConfig, Method, Sketch, SparqConfig};

use crate::common::{Noise, cache_config, cache_f32, devices, max_difference, positions};

/// Costs at which SparQ becomes cheaper within the tested lengths.
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

fn config(sketch: Sketch) -> KvCacheConfig {
    cache_config([1, 2, 16], Some(sketch)).with_capacity(200)
}

#[test]
fn switches_to_sparq_at_the_break_even_length() {
    for device in devices() {
        for sketch in [Sketch::Full, Sketch::Bits4] {
            let auto = auto(sketch);
            let config = config(sketch);
            let at = COSTS.break_even(&auto.step(&config), &auto.sparq).unwrap();
            assert!((20..200).contains(&at), "{at}");
            let (q, [k, v]) = Noise(3).problem([1, 2, 200, 16], 4, &device);
            for len in [4, 8, 9, at - 1, at, at + 1, 200] {
                let part = |t| positions(t, 0..len);
                let cache = || cache_f32(&part(&k), &part(&v), Some(sketch));
                let decode = |method: Method| method.decode(q.clone(), &mut cache()).unwrap();
                let chosen = Method::from(auto).at(&config, len);
                assert_eq!(chosen != Method::DENSE, len >= at);
                let found = decode(auto.into());
                assert!(max_difference(&found, &decode(chosen)) < 1e-5, "{len}");
                // The other method gives a different output.
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
fn requires_the_sketch_for_dense_steps_too() {
    let method = Method::from(auto(Sketch::Bits4));
    assert_eq!(method.sketch(), Some(Sketch::Bits4));
    for device in devices() {
        let mut noise = Noise(4);
        let k = noise.tensor([1, 2, 5, 16], &device);
        let mut without = cache_f32(&k, &k, None);
        let q = noise.tensor([1, 4, 1, 16], &device);
        let error = method.decode(q, &mut without).unwrap_err().to_string();
        assert!(
            error.contains("the method auto needs codes of 4 bits"),
            "{error}"
        );
    }
}

#[test]
fn settings_and_costs_are_validated_and_serialized() {
    let good = Method::from(auto(Sketch::Full));
    assert!(good.validate(16).is_ok());
    assert!(good.validate(3).unwrap_err().to_string().contains("rank"));
    for device in devices() {
        let mut noise = Noise(5);
        let k = noise.tensor([1, 2, 20, 16], &device);
        let mut cache = cache_f32(&k, &k, Some(Sketch::Full));
        // One query head per KV head, but the method expects two.
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
