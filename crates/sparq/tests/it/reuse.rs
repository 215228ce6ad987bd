//! Steps that attend to the positions of another layer.

use burn::tensor::{DType, Device, Int, Tensor};
use sparq::methods::{Anchors, MeanValue};
use sparq::{KvCache, KvCacheConfig, Method, RowFormat, Sketch, SparqConfig, reference};

use crate::common::{
    Noise, cache_config, devices, max_difference, new_cache, positions, tf32_error, values,
};

/// Query heads of two KV heads each.
const HEADS: usize = 6;
/// KV heads of the anchor. The other layer has as many.
const KV_HEADS: usize = 2;
const TOP_K: usize = 40;

fn method() -> SparqConfig {
    SparqConfig::new(6, TOP_K)
        .with_sketch(Sketch::Bits4)
        .with_mean_value(MeanValue::Never)
}

fn heads(heads: [u32; KV_HEADS], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(heads, (device, DType::U32))
}

/// Takes a step with the anchor, and returns the positions that it selects.
fn select(anchor: &mut KvCache, q: &Tensor<4>) -> Tensor<3, Int> {
    anchor.keep_selection(true);
    Method::from(method()).decode(q.clone(), anchor).unwrap();
    let selected = anchor.take_selection().unwrap();
    assert!(anchor.take_selection().is_none());
    selected
}

/// Returns attention of q over lists of positions, computed in float64.
///
/// `lists` are those of each sequence and KV head.
fn expected(q: &Tensor<4>, cache: &KvCache, lists: &[Vec<usize>]) -> Vec<f64> {
    let [batch, heads, _, d] = q.dims();
    let len = cache.len();
    let [k, v] = [&cache.tensors().k, &cache.tensors().v].map(|rows| values(&rows.at(0..len)));
    let q = values(q);
    let mut output = Vec::new();
    for head in 0..batch * heads {
        let kv_head = head / (heads / KV_HEADS);
        let row = |rows: &[f32], at: usize, c: usize| f64::from(rows[(kv_head * len + at) * d + c]);
        let logit = |&at: &usize| {
            let dot: f64 = (0..d)
                .map(|c| f64::from(q[head * d + c]) * row(&k, at, c))
                .sum();
            let logit = dot / (d as f64).sqrt();
            cache
                .config()
                .softcap
                .map_or(logit, |bound| bound * (logit / bound).tanh())
        };
        let weights: Vec<f64> = lists[kv_head].iter().map(|at| logit(at).exp()).collect();
        let total: f64 = weights.iter().sum();
        output.extend((0..d).map(|c| {
            let terms = weights.iter().zip(&lists[kv_head]);
            terms
                .map(|(weight, &at)| weight * row(&v, at, c))
                .sum::<f64>()
                / total
        }));
    }
    output
}

/// Returns the valid numbers of lists of positions, taken by a map of heads.
fn lists(selected: &Tensor<3, Int>, heads: [u32; KV_HEADS]) -> Vec<Vec<usize>> {
    let [_, _, k] = selected.dims();
    let all: Vec<i64> = selected.clone().into_data().iter::<i64>().collect();
    let all: Vec<&[i64]> = all.chunks(k).collect();
    let of = |list: usize| {
        let list = all[list / KV_HEADS * KV_HEADS + heads[list % KV_HEADS] as usize];
        let valid = list
            .iter()
            .filter_map(|&position| usize::try_from(position).ok());
        valid.collect()
    };
    (0..all.len()).map(of).collect()
}

#[test]
fn steps_attend_to_the_positions_given() {
    let cases: [(&str, KvCacheConfig); 4] = [
        ("floats", cache_config([2, KV_HEADS, 16], None)),
        (
            "codes",
            cache_config([2, KV_HEADS, 16], None).with_rows(RowFormat::Int8),
        ),
        (
            "window",
            cache_config([2, KV_HEADS, 16], None).with_window(Some(70)),
        ),
        (
            "softcap",
            cache_config([2, KV_HEADS, 16], None).with_softcap(Some(1.5)),
        ),
    ];
    for device in devices() {
        for (name, config) in cases {
            // Of the second sequence fewer positions are valid than the first one selects.
            for (padding, counts) in [
                ([0, 0], [130, 130]),
                ([0, 9], [130, 130]),
                ([0, 0], [130, 25]),
            ] {
                let mut noise = Noise(11);
                let (q, [k, v]) = noise.problem([2, KV_HEADS, 130, 16], HEADS, &device);
                let [other_k, other_v] = noise.tensors([2, KV_HEADS, 130, 16], &device);
                let mut anchor = new_cache(&config.with_sketch(Some(Sketch::Bits4)), &device);
                let mut other = new_cache(&config, &device);
                for (cache, k, v) in [(&mut anchor, k, v), (&mut other, other_k, other_v)] {
                    cache.set_left_padding(&padding).unwrap();
                    cache.append_ragged(k, v, &counts).unwrap();
                }
                let selected = select(&mut anchor, &q);
                let q = noise.tensor([2, HEADS, 1, 16], &device);
                for map in [[0, 1], [1, 0], [1, 1]] {
                    other.reuse(Some((selected.clone(), heads(map, &device))));
                    let y = Method::DENSE.decode(q.clone(), &mut other).unwrap();
                    let want = expected(&q, &other, &lists(&selected, map));
                    let pairs = values(&y).into_iter().zip(want);
                    let worst = pairs.map(|(y, want)| (f64::from(y) - want).abs());
                    let worst = worst.fold(0.0, f64::max);
                    let case = format!("{name} {padding:?} {counts:?} {map:?} {device:?}");
                    assert!(
                        worst < 2e-5 + f64::from(tf32_error(&device)),
                        "{case}: {worst}"
                    );
                }
            }
        }
    }
}

#[test]
fn own_positions_give_the_step_of_the_anchor() {
    for device in devices() {
        let (q, [k, v]) = Noise(12).problem([1, KV_HEADS, 150, 16], HEADS, &device);
        let config = cache_config([1, KV_HEADS, 16], Some(Sketch::Bits4));
        let mut cache = new_cache(&config, &device);
        cache.append(k, v).unwrap();
        let step = Method::from(method())
            .decode(q.clone(), &mut cache)
            .unwrap();
        let selected = select(&mut cache, &q);
        cache.reuse(Some((selected, heads([0, 1], &device))));
        let reused = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
        let difference = max_difference(&reused, &step);
        assert!(difference < 1e-5 + tf32_error(&device), "{difference}");
        // The next step chooses again.
        let dense = Method::DENSE.decode(q.clone(), &mut cache).unwrap();
        assert!(max_difference(&dense, &reused) > 1e-3);
        let selected = select(&mut cache, &q);
        cache.reuse(Some((selected, heads([0, 1], &device))));
        cache.reuse(None);
        let again = Method::DENSE.decode(q, &mut cache).unwrap();
        assert!(max_difference(&again, &dense) == 0.0);
    }
}

#[test]
fn dense_steps_select_nothing() {
    let device = &devices()[0];
    let (q, [k, v]) = Noise(13).problem([1, KV_HEADS, 60, 16], HEADS, device);
    let mut cache = new_cache(
        &cache_config([1, KV_HEADS, 16], Some(Sketch::Bits4)),
        device,
    );
    cache
        .append(positions(&k, 0..TOP_K), positions(&v, 0..TOP_K))
        .unwrap();
    cache.keep_selection(true);
    Method::from(method())
        .decode(q.clone(), &mut cache)
        .unwrap();
    assert!(cache.take_selection().is_none(), "all positions are read");
    cache
        .append(positions(&k, TOP_K..60), positions(&v, TOP_K..60))
        .unwrap();
    Method::from(method())
        .decode(q.clone(), &mut cache)
        .unwrap();
    assert!(cache.take_selection().is_some());
    cache.keep_selection(false);
    Method::from(method()).decode(q, &mut cache).unwrap();
    assert!(cache.take_selection().is_none());
}

#[test]
fn the_reference_takes_positions_by_heads() {
    let device = Device::default();
    let (q, [k, v]) = Noise(14).problem([1, KV_HEADS, 90, 16], HEADS, &device);
    let mut cache = new_cache(&cache_config([1, KV_HEADS, 16], None), &device);
    cache.append(k, v).unwrap();
    let selected: Vec<i64> = (0..2 * 8).map(|at| at * 5).collect();
    let selected = Tensor::<1, Int>::from_ints(selected.as_slice(), &device).reshape([1, 2, 8]);
    let of = |map: [u32; 2]| {
        let (tensors, heads) = (cache.tensors(), heads(map, &device));
        reference::attend_positions(q.clone(), tensors, selected.clone(), heads, cache.spans())
    };
    let want = expected(&q, &cache, &lists(&selected, [1, 0]));
    let found = values(&of([1, 0]));
    assert!(
        found
            .iter()
            .zip(want)
            .all(|(&y, want)| (f64::from(y) - want).abs() < 1e-4)
    );
    assert!(max_difference(&of([0, 1]), &of([1, 0])) > 1e-3);
}

#[test]
fn anchors_are_words_and_json() {
    let shared: Method = "sparq-4bit:anchors=14".parse().unwrap();
    assert!(shared.to_string().ends_with(",anchors=14"), "{shared}");
    assert_eq!(shared.anchors(), Anchors::Number(14));
    assert_eq!(shared.to_string().parse::<Method>().unwrap(), shared);
    let all: Method = "sparq-4bit:anchors=all".parse().unwrap();
    assert_eq!(all, "sparq-4bit".parse().unwrap());
    assert!(!all.to_string().contains("anchors"));
    let json = serde_json::to_string(&shared).unwrap();
    assert!(json.ends_with(r#""anchors":14}"#), "{json}");
    assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), shared);
    assert!(!serde_json::to_string(&all).unwrap().contains("anchors"));
    for words in ["anchors=0", "anchors=some", "anchors=-1"] {
        let error = format!("sparq:{words}").parse::<Method>().unwrap_err();
        assert!(error.to_string().contains("at least 1, or all"), "{error}");
    }
    let none = SparqConfig::new(8, 8).with_anchors(Anchors::Number(0));
    assert!(
        none.validate(64)
            .unwrap_err()
            .to_string()
            .starts_with("anchors: expected at least 1")
    );
    assert_eq!([1, 20].map(|layers| shared.anchors().of(layers)), [1, 14]);
}
