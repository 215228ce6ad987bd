//! Layers that share positions: plans, caches, steps and drafts of the embedded model.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use sparq::methods::{Anchors, Auto, MeanValue};
use sparq::{Method, RowFormat, Sketch, SparqConfig};
use sparq_models::calibration::layer_sharing;
use sparq_models::text::{GenerateOptions, Session, SpeculativeConfig};
use sparq_models::{CausalLm, Decoder, LayerSharing, ModelCache, SequenceStep, embedded};

use crate::embedded_model;

const LENGTH: usize = 200;
const LAYERS: usize = 6;

fn tokens(range: std::ops::Range<usize>, model: &Decoder) -> Tensor<2, Int> {
    let text = "And God said, Let there be light: and there was light. ".repeat(6);
    let ids: Vec<i64> = text.bytes().map(i64::from).collect();
    Tensor::<1, Int>::from_ints(&ids[range], &model.device()).unsqueeze()
}

fn new_cache(model: &Decoder, method: &Method) -> ModelCache {
    model.new_cache(1, 256, FloatDType::F32, method).unwrap()
}

/// Returns a cache with the first `LENGTH` tokens.
fn read(model: &Decoder, method: &Method) -> ModelCache {
    let mut cache = new_cache(model, method);
    model
        .prefill(tokens(0..LENGTH, model), &mut cache, 1)
        .unwrap();
    cache
}

fn values(logits: Tensor<3>) -> Vec<f32> {
    logits.into_data().try_to_vec::<f32>().unwrap()
}

/// Returns the logits of some steps after the text.
fn decode(model: &Decoder, cache: &mut ModelCache, method: &Method) -> Vec<f32> {
    let from = cache.len();
    let steps = (from..from + 5).map(|at| {
        let token = tokens(at..at + 1, model);
        values(model.decode(token, cache, method).unwrap())
    });
    steps.flatten().collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3)
}

/// Returns the measurement of the embedded model.
fn measured() -> LayerSharing {
    static MEASURED: OnceLock<LayerSharing> = OnceLock::new();
    let measure = || {
        let model = embedded_model(&Device::default());
        let mut cache = read(&model, &Method::DENSE);
        let mut steps = 0;
        let text: Vec<u32> = "And God saw".bytes().map(u32::from).collect();
        let found = layer_sharing(&model, &mut cache, &text, 16, &mut || steps += 1);
        assert_eq!(steps, text.len());
        found.unwrap()
    };
    MEASURED.get_or_init(measure).clone()
}

fn shared_model() -> Decoder {
    embedded_model(&Device::default())
        .with_sharing(measured())
        .unwrap()
}

fn config() -> SparqConfig {
    SparqConfig::new(16, 24).with_sketch(Sketch::Bits4)
}

fn with_anchors(anchors: usize) -> Method {
    config().with_anchors(Anchors::Number(anchors)).into()
}

#[test]
fn measurement_names_the_best_heads() {
    let measured = measured();
    assert_eq!(
        (measured.layers(), measured.top_k, measured.steps),
        (LAYERS, 16, 11)
    );
    let device = Device::default();
    let cache = new_cache(&embedded_model(&device), &Method::DENSE);
    let kv_heads = cache.layers[0].config().kv_heads;
    measured.check(&[None; LAYERS], kv_heads).unwrap();
    for (b, kept) in measured.kept.iter().enumerate() {
        let own = kept[b].unwrap();
        // Its own positions keep the most of a layer's attention.
        assert!(
            kept.iter()
                .flatten()
                .all(|&kept| kept > 0.0 && kept <= own + 1e-4)
        );
    }
    let mass = |anchors| {
        let plan = measured.plan(anchors, 0).unwrap();
        assert_eq!(plan.anchors(), anchors);
        measured.kept(&plan)
    };
    let masses: Vec<f64> = (1..=LAYERS).map(mass).collect();
    assert!(masses.is_sorted(), "{masses:?}");

    let json = serde_json::to_string(&measured).unwrap();
    assert_eq!(
        serde_json::from_str::<LayerSharing>(&json).unwrap(),
        measured
    );
}

#[test]
fn as_many_anchors_as_layers_change_nothing() {
    let (plain, shared) = (embedded_model(&Device::default()), shared_model());
    let own = Method::from(config());
    let expected = decode(&plain, &mut read(&plain, &own), &own);
    for anchors in [LAYERS, LAYERS + 1] {
        for model in [&plain, &shared] {
            let method = with_anchors(anchors);
            let found = decode(model, &mut read(model, &method), &method);
            assert_eq!(found, expected, "{anchors}");
        }
    }
}

#[test]
fn reuse_layers_attend_to_the_positions_of_anchors() {
    let model = shared_model();
    let method = with_anchors(2);
    let mut cache = read(&model, &method);
    let plan = measured().plan(2, 0).unwrap();
    for (layer, cache) in cache.layers.iter().enumerate() {
        assert_eq!(
            cache.config().sketch.is_some(),
            plan.is_anchor(layer),
            "{layer}"
        );
    }
    let mut dense = read(&model, &Method::DENSE);
    let shared = decode(&model, &mut cache, &method);
    let all = decode(&model, &mut dense, &Method::DENSE);
    let own = Method::from(config());
    let own = decode(&model, &mut read(&model, &own), &own);
    assert!(shared != all && shared != own);

    // The last layer by itself: its query over the positions that its anchor selects.
    let layer = (0..LAYERS).rfind(|&layer| !plan.is_anchor(layer)).unwrap();
    let anchor = plan.anchor_of[layer];
    for layer in &mut cache.layers {
        layer.keep_query(true);
    }
    decode(&model, &mut cache, &method);
    let (mut a, mut b) = (cache.layers[anchor].clone(), cache.layers[layer].clone());
    let q_of_anchor = a.query().unwrap().clone();
    let q = b.query().unwrap().clone();
    a.keep_selection(true);
    method.decode(q_of_anchor, &mut a).unwrap();
    let positions = a.take_selection().unwrap();
    let heads = measured().heads[layer][anchor].clone();
    let heads = Tensor::<1, Int>::from_data(heads.as_slice(), (&model.device(), DType::U32));
    b.reuse(Some((positions.clone(), heads.clone())));
    let found = Method::DENSE.decode(q.clone(), &mut b).unwrap();
    let tensors = b.tensors();
    let expected = sparq::reference::attend_positions(q, tensors, positions, heads, b.spans());
    let difference = (found - expected).abs().max().into_scalar::<f32>();
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn caches_of_a_shared_prefill_are_those_of_the_method() {
    let model = shared_model();
    for rows in [RowFormat::Float, RowFormat::Int8] {
        let method = config()
            .with_rows(rows)
            .with_anchors(Anchors::Number(3))
            .into();
        let shared = model.new_shared_cache(1, 256, FloatDType::F32, &[method]);
        let mut shared = shared.unwrap();
        model
            .prefill(tokens(0..LENGTH, &model), &mut shared, 1)
            .unwrap();
        let mut copy = shared.for_method(&method).unwrap();
        let mut own = new_cache(&model, &method);
        assert_eq!(copy.memory(), own.memory());
        let found = decode(&model, &mut copy, &method);
        model
            .prefill(tokens(0..LENGTH, &model), &mut own, 1)
            .unwrap();
        if rows == RowFormat::Float {
            assert!(close(&found, &decode(&model, &mut own, &method)));
        }
        assert!(found.iter().all(|logit| logit.is_finite()));
    }
    let all = new_cache(&model, &config().into()).memory();
    let few = new_cache(&model, &with_anchors(2)).memory();
    assert_eq!(few.sketch * LAYERS, all.sketch * 2);
}

#[test]
fn steps_are_repeatable_after_a_roll_back() {
    let model = shared_model();
    let method = with_anchors(2);
    let mut cache = read(&model, &method);
    cache.finish_prompt();
    let mut mark = cache.mark();
    let first = decode(&model, &mut cache, &method);
    cache.roll_back(&mut mark, &[0]).unwrap();
    assert!(close(&decode(&model, &mut cache, &method), &first));
    // Short caches are read densely, and later steps share again.
    cache.truncate(10);
    let token = tokens(10..11, &model);
    let short = values(model.decode(token.clone(), &mut cache, &method).unwrap());
    let mut dense = new_cache(&model, &Method::DENSE);
    model.prefill(tokens(0..10, &model), &mut dense, 1).unwrap();
    let expected = values(model.decode(token, &mut dense, &Method::DENSE).unwrap());
    assert!(close(&short, &expected));
    model
        .prefill(tokens(11..LENGTH, &model), &mut cache, 1)
        .unwrap();
    cache.finish_prompt();
    assert!(close(&decode(&model, &mut cache, &method), &first));
}

#[test]
fn sequences_share_positions_among_their_own_layers() {
    let model = shared_model();
    let methods = [with_anchors(2), config().into(), with_anchors(4)];
    let alone = methods.map(|method| decode(&model, &mut read(&model, &method), &method));
    let mut caches = methods.map(|method| read(&model, &method));
    let mut found: [Vec<f32>; 3] = Default::default();
    for at in LENGTH..LENGTH + 5 {
        let token = tokens(at..at + 1, &model).repeat_dim(0, 3);
        let pairs = caches.iter_mut().zip(methods);
        let steps = pairs.map(|(cache, method)| SequenceStep { cache, method });
        let logits = model
            .decode_each(token, &mut steps.collect::<Vec<_>>())
            .unwrap();
        for (row, found) in found.iter_mut().enumerate() {
            found.extend(values(logits.clone().slice_dim(0, row..row + 1)));
        }
    }
    for (found, alone) in found.iter().zip(&alone) {
        assert!(close(found, alone));
    }
    assert!(!close(&alone[0], &alone[1]) && !close(&alone[0], &alone[2]));
}

#[test]
fn drafts_that_share_change_no_token() {
    let model = shared_model();
    let prompt: Vec<u32> = "And God said, Let there be light"
        .bytes()
        .map(u32::from)
        .collect();
    let generate = |speculative: Option<SpeculativeConfig>| {
        let method = speculative.map_or(Method::DENSE, |config| config.cache_method());
        let options = GenerateOptions {
            method: Method::DENSE,
            max_new_tokens: 40,
            speculative,
            ..Default::default()
        };
        let mut session = Session::new(new_cache(&model, &method), embedded::tokenizer().unwrap());
        let mut on_event = |_: sparq_models::text::GenerateEvent<'_>| ControlFlow::Continue(());
        session
            .generate(&model, &prompt, &options, &mut on_event)
            .unwrap()
    };
    let settings = SparqConfig::new(16, 8)
        .with_mean_value(MeanValue::Never)
        .with_anchors(Anchors::Number(2));
    let draft = Auto::new(settings, 2, &model.device());
    let drafts = SpeculativeConfig::new(draft).with_tokens(Some(3));
    let (dense, found) = (generate(None), generate(Some(drafts)));
    assert_eq!(found.tokens, dense.tokens);
    let stats = found.speculative.unwrap();
    assert!(stats.drafted > 0 && stats.accepted > 0, "{stats:?}");
}

#[test]
fn anchors_need_a_measurement() {
    let (plain, shared) = (embedded_model(&Device::default()), shared_model());
    let message = |model: &Decoder, anchors| {
        let cache = model.new_cache(1, 64, FloatDType::F32, &with_anchors(anchors));
        cache.map(drop).unwrap_err().to_string()
    };
    let missing = message(&plain, 2);
    assert!(
        missing.contains("--calibrate") && missing.contains("with_sharing"),
        "{missing}"
    );
    assert!(
        message(&shared, 0).contains("anchors"),
        "{}",
        message(&shared, 0)
    );
    // The caches and steps of a model without one.
    let mut cache = read(&plain, &Method::DENSE);
    assert!(cache.for_method(&with_anchors(2)).is_err());
    let token = tokens(LENGTH..LENGTH + 1, &plain);
    assert!(
        plain
            .decode(token.clone(), &mut cache, &with_anchors(2))
            .is_err()
    );
    assert!(plain.decode(token, &mut cache, &Method::DENSE).is_ok());
}

#[test]
fn measurements_of_other_models_are_refused() {
    let refused = |change: &dyn Fn(&mut LayerSharing)| {
        let mut sharing = measured();
        change(&mut sharing);
        let model = embedded_model(&Device::default()).with_sharing(sharing);
        model.map(drop).unwrap_err().to_string()
    };
    let layers = refused(&|sharing| drop(sharing.kept.pop()));
    assert!(
        layers.contains("rows of 6 layers (the model's), found 5"),
        "{layers}"
    );
    let head = refused(&|sharing| sharing.heads[3][1][0] = 9);
    assert!(
        head.contains("KV heads below") && head.contains("layers 1 and 3, found 9"),
        "{head}"
    );
    let short = refused(&|sharing| sharing.heads[3][1].truncate(1));
    assert!(short.contains("KV heads for layers 1 and 3"), "{short}");
    let share = refused(&|sharing| sharing.kept[4][2] = Some(1.5));
    assert!(
        share.contains("a share from 0 to 1 for layers 2 and 4, found 1.5"),
        "{share}"
    );
    let missing = refused(&|sharing| sharing.kept[4][2] = None);
    assert!(
        missing.contains("a share for layers 2 and 4, found null"),
        "{missing}"
    );
    let row = refused(&|sharing| sharing.kept[4].truncate(4));
    assert!(
        row.contains("5 entries of \"kept\" for layer 4, found 4"),
        "{row}"
    );
    let windows = [None, None, Some(8), None, None, None];
    let error = measured().check(&windows, 2).unwrap_err().to_string();
    assert!(
        error.contains("null for layers 0 and 2, whose sliding windows differ"),
        "{error}"
    );
}
