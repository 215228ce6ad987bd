//! Several methods after one prefill, and dense first layers.

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{Method, SparqError};
use sparq_models::{CausalLm, Decoder, ModelCache, SequenceStep};

use crate::embedded_model;

fn tokens(range: std::ops::Range<i64>, model: &Decoder) -> Tensor<2, Int> {
    let text: Vec<i64> = range.map(|at| 97 + at * at % 26).collect();
    Tensor::<1, Int>::from_ints(text.as_slice(), &model.device()).unsqueeze()
}

/// Returns the logits after 200 bytes and ten decode steps.
fn decode(model: &Decoder, mut cache: ModelCache, method: &Method) -> Vec<f32> {
    let mut logits = None;
    for at in 200..210 {
        let token = tokens(at..at + 1, model);
        logits = Some(model.decode(token, &mut cache, method).unwrap());
    }
    logits.unwrap().into_data().try_to_vec::<f32>().unwrap()
}

fn prefill(model: &Decoder, mut cache: ModelCache) -> ModelCache {
    model.prefill(tokens(0..200, model), &mut cache, 1).unwrap();
    cache
}

fn new_cache(model: &Decoder, method: &Method) -> ModelCache {
    model.new_cache(1, 256, FloatDType::F32, method).unwrap()
}

#[test]
fn shared_prefill_serves_every_method() {
    let model = embedded_model(&Device::default());
    let names = Method::names().into_iter();
    let methods: Vec<Method> = names
        .filter_map(|name| Method::for_budget(name, 64, 200, 0.5).ok())
        .collect();
    assert!(methods.len() >= 15);
    let shared = model.new_shared_cache(1, 256, FloatDType::F32, &methods);
    let shared = prefill(&model, shared.unwrap());
    let dense = shared.for_method(&Method::DENSE).unwrap();
    let dense = decode(&model, dense, &Method::DENSE);
    for method in &methods {
        method.validate(64).unwrap();
        let own = decode(&model, prefill(&model, new_cache(&model, method)), method);
        let copy = decode(&model, shared.for_method(method).unwrap(), method);
        let differences = own.iter().zip(&copy).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst < 1e-3, "{method}: {worst}");
        assert_ne!(copy, dense, "{method} selects all positions");
    }
    assert_eq!(shared.len(), 200);
    // A cache for dense attention does not record the attention that H2O needs.
    let dense = prefill(&model, new_cache(&model, &Method::DENSE));
    let error = dense.for_method(&Method::named("h2o").unwrap());
    let error = error.unwrap_err();
    assert!(
        matches!(error, SparqError::MissingAttention { .. }),
        "{error}"
    );
}

#[test]
fn first_layers_can_stay_dense() {
    let model = embedded_model(&Device::default());
    let method: Method = "sparq:r=8,k=16".parse().unwrap();
    let logits = |dense_layers: usize, method: &Method| {
        let model = model.clone().with_dense_layers(dense_layers);
        let cache = new_cache(&model, method);
        let layers = cache.layers.iter();
        let sketched = layers
            .filter(|layer| layer.config().sketch.is_some())
            .count();
        (decode(&model, prefill(&model, cache), method), sketched)
    };
    let (dense, _) = logits(0, &Method::DENSE);
    let layers = new_cache(&model, &method).layers.len();
    let (all, sketched) = logits(layers, &method);
    assert_eq!((all, sketched), (dense.clone(), 0));
    let (none, sketched) = logits(0, &method);
    assert_eq!(sketched, layers);
    let (first, sketched) = logits(1, &method);
    assert_eq!(sketched, layers - 1);
    assert!(first != none && first != dense && none != dense);
}

/// Returns the logits of a sequence after `len` bytes and four decode steps alone.
fn alone(model: &Decoder, len: i64, method: &Method) -> Vec<f32> {
    let mut cache = new_cache(model, method);
    model.prefill(tokens(0..len, model), &mut cache, 1).unwrap();
    let mut logits = None;
    for at in len..len + 4 {
        let token = tokens(at..at + 1, model);
        logits = Some(model.decode(token, &mut cache, method).unwrap());
    }
    logits.unwrap().into_data().try_to_vec::<f32>().unwrap()
}

#[test]
fn sequences_with_a_cache_each_decode_together() {
    let model = embedded_model(&Device::default());
    let methods: [Method; 3] = [
        Method::DENSE,
        "sparq:r=8,k=16".parse().unwrap(),
        Method::DENSE,
    ];
    let lengths = [70, 200, 1];
    let mut caches: Vec<ModelCache> = methods.map(|method| new_cache(&model, &method)).into();
    for (cache, len) in caches.iter_mut().zip(lengths) {
        model.prefill(tokens(0..len, &model), cache, 1).unwrap();
    }
    let mut logits = None;
    for step in 0..4 {
        let rows = lengths.map(|len| tokens(len + step..len + step + 1, &model));
        let pairs = caches.iter_mut().zip(methods);
        let steps = pairs.map(|(cache, method)| SequenceStep { cache, method });
        let mut steps: Vec<_> = steps.collect();
        let rows = Tensor::cat(rows.into(), 0);
        logits = Some(model.decode_each(rows, &mut steps).unwrap());
    }
    let logits = logits.unwrap();
    for (row, (len, method)) in lengths.into_iter().zip(methods).enumerate() {
        let found = logits.clone().slice_dim(0, row..row + 1).into_data();
        let found = found.try_to_vec::<f32>().unwrap();
        let expected = alone(&model, len, &method);
        let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst < 1e-3, "{method} at {len}: {worst}");
        assert_eq!(caches[row].len(), len as usize + 4);
    }
    let mut two = model
        .new_cache(2, 64, FloatDType::F32, &Method::DENSE)
        .unwrap();
    let method = Method::DENSE;
    let steps = &mut [SequenceStep {
        cache: &mut two,
        method,
    }];
    let error = model.decode_each(tokens(0..1, &model), steps).unwrap_err();
    assert!(matches!(error, SparqError::Shape { .. }), "{error}");
}
