//! Captured decode steps of the embedded model give the same tokens as single launches.
//!
//! A process of its own: while a device captures, no other test may allocate on it.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use sparq::methods::{Anchors, Auto};
use sparq::{Method, Sketch, SparqConfig};
use sparq_models::text::{GenerateOptions, Session, SpeculativeConfig};
use sparq_models::{CapturedLm, CausalLm, Decoder, DecoderConfig, LayerSharing, embedded};

const PROMPT: &str = "And it came to pass in those days, that there went out a decree";

/// Lets one test at a time use the devices.
fn lock_devices() -> MutexGuard<'static, ()> {
    static DEVICES: Mutex<()> = Mutex::new(());
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the device that BURN_DEVICE names, or else flex and the Vulkan device of this build.
fn devices() -> Vec<Device> {
    if std::env::var_os("BURN_DEVICE").is_some() {
        return vec![Device::default()];
    }
    vec![
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "vulkan")]
        Device::vulkan(burn::tensor::DeviceKind::DefaultDevice),
    ]
}

fn methods() -> [Method; 4] {
    // The prompt has 63 tokens: SparQ selects all positions at first and skips some later.
    let sparq = SparqConfig::new(16, 70);
    [
        Method::DENSE,
        sparq.into(),
        sparq.with_sketch(Sketch::Bits8).into(),
        sparq.with_sketch(Sketch::Bits4).into(),
    ]
}

fn load(dtype: FloatDType, device: &Device) -> Decoder {
    let checkpoint = embedded::checkpoint().unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    Decoder::load(&checkpoint, &config, dtype, device).unwrap()
}

fn tokens(ids: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = ids.iter().copied().map(i64::from).collect();
    let shape = [1, ids.len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// Returns the greedy continuation of the prompt and the number of replayed decode steps.
fn continue_prompt(
    model: &Decoder,
    dtype: FloatDType,
    method: &Method,
    capture: bool,
    count: usize,
) -> (Vec<u32>, usize) {
    let device = model.device();
    let prompt: Vec<u32> = PROMPT.bytes().map(u32::from).collect();
    let mut cache = model.new_cache(1, 64, dtype, method).unwrap();
    let mut logits = model
        .prefill(tokens(&prompt, &device), &mut cache, 1)
        .unwrap();
    let mut decode = CapturedLm::new(model, &mut cache, *method).with_capture(capture);
    let (mut generated, mut replays) = (Vec::new(), 0);
    for _ in 0..count {
        let token = logits.argmax(2).into_data().iter::<u32>().next().unwrap();
        generated.push(token);
        logits = decode.step(tokens(&[token], &device)).unwrap();
        replays += usize::from(decode.is_captured());
    }
    drop(decode);
    assert_eq!(cache.len(), prompt.len() + count);
    (generated, replays)
}

#[test]
fn capture_matches_single_launches_on_every_device() {
    let _lock = lock_devices();
    let flex = load(FloatDType::F32, &devices()[0]);
    for device in devices() {
        let model = load(FloatDType::F32, &device);
        for method in methods() {
            let (want, _) = continue_prompt(&flex, FloatDType::F32, &method, false, 80);
            let (single, replays) = continue_prompt(&model, FloatDType::F32, &method, false, 80);
            assert_eq!((&single, replays), (&want, 0), "{device:?} {method:?}");
            let (found, replays) = continue_prompt(&model, FloatDType::F32, &method, true, 80);
            assert_eq!(found, want, "{device:?} {method:?} captured");
            assert!(replays == 0 || replays >= 70, "{device:?}: {replays}");
        }
    }
}

#[test]
fn captured_layers_share_positions() {
    let _lock = lock_devices();
    let (layers, kv_heads) = (6, 2);
    let sharing = LayerSharing {
        top_k: 8,
        steps: 1,
        kept: (0..layers).map(|b| vec![Some(0.5); b + 1]).collect(),
        heads: (0..layers)
            .map(|b| vec![(0..kv_heads).rev().collect(); b])
            .collect(),
    };
    let shared = |device: &Device| {
        load(FloatDType::F32, device)
            .with_sharing(sharing.clone())
            .unwrap()
    };
    let flex = shared(&devices()[0]);
    for device in devices() {
        let model = shared(&device);
        // The steps change from dense to sparse while they are captured.
        for top_k in [24, 70] {
            let method = SparqConfig::new(16, top_k)
                .with_anchors(Anchors::Number(2))
                .into();
            let (want, _) = continue_prompt(&flex, FloatDType::F32, &method, false, 60);
            for capture in [false, true] {
                let (found, _) = continue_prompt(&model, FloatDType::F32, &method, capture, 60);
                assert_eq!(found, want, "{device:?} {top_k} {capture}");
            }
        }
    }
}

#[test]
fn capture_changes_no_session_of_several_turns() {
    let _lock = lock_devices();
    for device in devices() {
        let model = load(FloatDType::F32, &device);
        let method = Method::from(SparqConfig::new(16, 48).with_sketch(Sketch::Bits4));
        let sequences = [true, false].map(|capture| {
            let cache = model.new_cache(1, 64, FloatDType::F32, &method).unwrap();
            let mut session = Session::new(cache, embedded::tokenizer().unwrap());
            let options = GenerateOptions {
                method,
                capture,
                max_new_tokens: 24,
                ..GenerateOptions::default()
            };
            let mut sequence: Vec<u32> = PROMPT.bytes().map(u32::from).collect();
            for turn in ["", " Then said he"] {
                sequence.extend(turn.bytes().map(u32::from));
                let mut on_event =
                    |_: sparq_models::text::GenerateEvent<'_>| ControlFlow::Continue(());
                let generated = session
                    .generate(&model, &sequence, &options, &mut on_event)
                    .unwrap();
                assert_eq!(generated.decode_steps, 23);
                sequence.extend(&generated.tokens);
                assert_eq!(session.tokens(), &sequence[..sequence.len() - 1]);
                assert_eq!(session.cache().len(), sequence.len() - 1);
            }
            sequence
        });
        assert_eq!(sequences[0], sequences[1], "{device:?}");
    }
}

#[test]
fn captured_drafts_give_the_tokens_of_dense_steps() {
    let _lock = lock_devices();
    for device in devices() {
        let model = load(FloatDType::F32, &device);
        let prompt: Vec<u32> = PROMPT.bytes().map(u32::from).collect();
        let sparq = SparqConfig::new(8, 24).with_sketch(Sketch::Bits4);
        let draft = SpeculativeConfig::new(Auto::new(sparq, 1, &device)).with_tokens(Some(4));
        let generate = |speculative: Option<SpeculativeConfig>, capture| {
            let method = speculative.map_or(Method::DENSE, |config| config.cache_method());
            let cache = model.new_cache(1, 256, FloatDType::F32, &method).unwrap();
            let mut session = Session::new(cache, embedded::tokenizer().unwrap());
            let options = GenerateOptions {
                speculative,
                capture,
                max_new_tokens: 100,
                ..GenerateOptions::default()
            };
            let mut on_event = |_: sparq_models::text::GenerateEvent<'_>| ControlFlow::Continue(());
            let generated = session.generate(&model, &prompt, &options, &mut on_event);
            generated.unwrap().tokens
        };
        let dense = generate(None, false);
        for capture in [false, true] {
            assert_eq!(
                generate(Some(draft), capture),
                dense,
                "{device:?} {capture}"
            );
        }
    }
}

/// Half precision is compared with itself: its tokens may differ from those of f32.
#[test]
fn capture_matches_single_launches_in_half_precision() {
    let _lock = lock_devices();
    for device in devices() {
        if !device.supports_dtype(FloatDType::F16) {
            continue;
        }
        let model = load(FloatDType::F16, &device);
        for method in methods() {
            let (single, _) = continue_prompt(&model, FloatDType::F16, &method, false, 40);
            let (found, _) = continue_prompt(&model, FloatDType::F16, &method, true, 40);
            assert_eq!(found, single, "{device:?} {method:?}");
        }
    }
}
