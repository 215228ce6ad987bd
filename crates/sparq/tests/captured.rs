//! Captured decode steps against steps whose kernels are launched one by one. On devices without
//! graphs, both are the same code.
//!
//! A binary of its own: while a device captures, no other test may allocate on it. For the same
//! reason the tests run one at a time.

mod common;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, FloatDType, Int, Tensor};
use common::{Noise, devices, max_difference, method_for, new_cache};
use sparq::methods::Dense;
use sparq::ops::can_be_captured;
use sparq::{
    CapturedStep, KvCache, Method, RotaryConfig, RowFormat, Sketch, SparqAttention,
    SparqAttentionConfig, SparqConfig, SparqError,
};

const D_MODEL: usize = 32;

/// Lets one test run at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test on each device, with layers, noise and a prompt of one sequence. No other test runs
/// at the same time.
fn on_every_device(seed: u64, test: impl Fn(&Device, &Layers, &mut Noise, &Tensor<3>)) {
    let _alone = alone();
    for device in devices() {
        let (layers, mut noise) = (Layers::new(&device), Noise(seed));
        let prompt = random(&mut noise, 1, 20, &device);
        test(&device, &layers, &mut noise, &prompt);
    }
}

/// Two residual layers of attention.
struct Layers([SparqAttention; 2]);

impl Layers {
    fn new(device: &Device) -> Self {
        device.seed(7);
        let config = SparqAttentionConfig::new(D_MODEL, 4, 2, 16)
            .with_rotary(Some(RotaryConfig::new(16).with_rotary_dim(Some(12))));
        Self([(); 2].map(|()| config.init(device).unwrap()))
    }

    /// Returns caches that hold a prompt. If there are two sequences, the second is left-padded.
    fn caches(&self, prompt: &Tensor<3>, capacity: usize, method: &Method) -> [KvCache; 2] {
        let batch = prompt.dims()[0];
        let mut x = prompt.clone();
        [0, 1].map(|index| {
            let config = self.0[index].cache_config(batch, capacity, FloatDType::F32, method);
            let mut cache = new_cache(&config, &prompt.device());
            if batch == 2 {
                cache.set_left_padding(&[0, 5]).unwrap();
            }
            let y = self.0[index].forward(x.clone(), Some(&mut cache)).unwrap();
            x = x.clone() + y;
            cache
        })
    }

    /// Asserts that captured steps of one sequence equal uncaptured steps on other caches.
    fn assert_equal<F>(
        &self,
        captured: &mut CapturedStep<Tensor<3>, [KvCache; 2], Tensor<3>, F>,
        caches: &mut [KvCache; 2],
        method: &Method,
        noise: &mut Noise,
        steps: usize,
    ) where
        F: Fn(&Tensor<3>, &mut [KvCache; 2], &Method) -> Result<Tensor<3>, SparqError>,
    {
        let device = caches[0].tensors().k.device();
        for step in 0..steps {
            let x = random(noise, 1, 1, &device);
            let want = self.decode(&x, caches, method).unwrap();
            let found = captured.step(x).unwrap();
            let difference = max_difference(&found, &want);
            assert!(difference < 1e-4, "{device:?} step {step}: {difference}");
        }
    }

    /// Returns one of the weights.
    fn weight(&self) -> Tensor<2> {
        self.0[0].q_proj.float().unwrap().weight.val()
    }

    /// Returns [`Self::decode`] as a step to capture.
    fn step(
        &self,
    ) -> impl Fn(&Tensor<3>, &mut [KvCache; 2], &Method) -> Result<Tensor<3>, SparqError> {
        |x, caches, method| self.decode(x, caches, method)
    }

    fn decode(
        &self,
        x: &Tensor<3>,
        caches: &mut [KvCache; 2],
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        let mut x = x.clone();
        for (layer, cache) in self.0.iter().zip(caches) {
            x = x.clone() + layer.decode(x, cache, method)?;
        }
        Ok(x)
    }
}

fn random(noise: &mut Noise, batch: usize, len: usize, device: &Device) -> Tensor<3> {
    noise
        .tensor([1, batch, len, D_MODEL], device)
        .squeeze_dim::<3>(0)
}

/// Returns whether burn captures graphs on the device.
fn has_graphs(device: &Device) -> bool {
    let x = Tensor::<1>::from_floats([1.0, 2.0], device);
    burn::tensor::capture(device, || x.clone() * 2.0).is_hardware()
}

/// Compares captured and uncaptured steps after the same prompt. Returns the number of replays.
fn compare(method: Method, batch: usize, steps: usize, device: &Device) -> usize {
    let (layers, mut noise) = (Layers::new(device), Noise(53));
    let prompt = random(&mut noise, batch, 20, device);
    let mut caches = layers.caches(&prompt, 32, &method);
    let state = layers.caches(&prompt, 32, &method);
    let mut captured = CapturedStep::new(state, method, layers.step());
    let (mut replays, mut ties) = (0, 0);
    for step in 0..steps {
        let x = random(&mut noise, batch, 1, device);
        let want = layers.decode(&x, &mut caches, &method).unwrap();
        let found = captured.step(x).unwrap();
        let difference = max_difference(&found, &want);
        // Launches of another size add in another order. Of two positions whose scores differ only
        // by that, either may be selected.
        ties += usize::from(difference > 1e-4);
        assert!(
            difference < 0.2 && ties <= steps / 200,
            "{device:?} {method:?} step {step}: {difference}, tie number {ties}"
        );
        replays += usize::from(captured.is_captured());
        let [first, second] = captured.state();
        assert_eq!(
            [first.spans(), second.spans()],
            [caches[0].spans(), caches[1].spans()]
        );
        assert_eq!(first.capacity(), caches[0].capacity());
    }
    let [mut first, _] = captured.into_state();
    first.truncate(steps);
    let spans = |cache: &KvCache| cache.tensors().spans.clone().into_data();
    caches[0].truncate(steps);
    spans(&first).assert_eq(&spans(&caches[0]), true);
    let sums = max_difference(&first.tensors().v_sum, &caches[0].tensors().v_sum);
    assert!(sums < 1e-2, "{device:?}: the sums of V differ by {sums}");
    replays
}

#[test]
fn a_thousand_replays_equal_single_launches() {
    let _alone = alone();
    for device in devices() {
        // Steps are dense up to 40 positions. Sketch ranges are set at 41, 82 and so on, and
        // buffers grow at 64, 128 and so on.
        let method = Method::from(SparqConfig::new(6, 40).with_sketch(Sketch::Bits4));
        let replays = compare(method, 2, 1050, &device);
        match has_graphs(&device) {
            true => assert!(replays >= 1000, "{device:?}: {replays} replays"),
            false => assert_eq!(replays, 0),
        }
    }
}

#[test]
fn every_method_can_be_captured() {
    let _alone = alone();
    for device in devices() {
        for method in [
            Method::DENSE,
            Method::from(SparqConfig::new(6, 24)),
            Method::from(SparqConfig::new(6, 24).with_sketch(Sketch::Bits8)),
            Method::from(Dense {
                rows: RowFormat::Int8,
            }),
            Method::from(
                SparqConfig::new(6, 24)
                    .with_sketch(Sketch::Bits4)
                    .with_rows(RowFormat::Int8),
            ),
        ] {
            let replays = compare(method, 1, 60, &device);
            assert!(
                replays == 0 || replays > 50,
                "{device:?} {method:?}: {replays}"
            );
        }
    }
}

#[test]
fn outputs_and_clones_keep_their_values() {
    on_every_device(59, |device, layers, noise, prompt| {
        let method = Method::DENSE;
        let mut captured =
            CapturedStep::new(layers.caches(prompt, 128, &method), method, layers.step());
        let x = |noise: &mut Noise| random(noise, 1, 1, device);
        captured.step(x(noise)).unwrap();
        let first = captured.step(x(noise)).unwrap();
        let before = first.clone().into_data();
        let clone = captured.state().clone();
        let keys = clone[0].tensors().k.floats().into_data();
        let (next, mut others) = (x(noise), clone.clone());
        let want = layers.decode(&next, &mut others, &method).unwrap();
        drop(others);
        let found = captured.step(next).unwrap();
        assert!(max_difference(&found, &want) < 1e-5, "{device:?}");
        for _ in 0..3 {
            captured.step(x(noise)).unwrap();
        }
        first.into_data().assert_eq(&before, true);
        clone[0]
            .tensors()
            .k
            .floats()
            .into_data()
            .assert_eq(&keys, true);
        assert_eq!((clone[0].len(), captured.state()[0].len()), (22, 26));
    });
}

/// Changed caches, another thread and an input that is also an output would each move or miss a
/// buffer of the graph.
#[test]
fn disturbances_end_the_capture() {
    on_every_device(61, |device, layers, noise, prompt| {
        let method = Method::from(SparqConfig::new(6, 12));
        let mut caches = layers.caches(prompt, 128, &method);
        let mut captured = CapturedStep::new(
            layers.caches(prompt, 128, &method),
            method,
            |x: &Tensor<3>, caches: &mut [KvCache; 2], method: &Method| {
                let y = layers.decode(x, caches, method)?;
                Ok((y, x.clone()))
            },
        );
        for step in 0..20 {
            if step % 4 == 3 {
                captured.state_mut().iter_mut().for_each(|c| c.truncate(17));
                caches.iter_mut().for_each(|cache| cache.truncate(17));
            }
            let x = random(noise, 1, 1, device);
            let want = layers.decode(&x, &mut caches, &method).unwrap();
            let (found, echo) = match step % 4 {
                2 => std::thread::scope(|scope| {
                    let run = scope.spawn(|| captured.step(x.clone()).unwrap());
                    run.join().unwrap()
                }),
                _ => captured.step(x.clone()).unwrap(),
            };
            assert!(max_difference(&echo, &x) == 0.0, "{device:?} {step}");
            let difference = max_difference(&found, &want);
            assert!(difference < 1e-4, "{device:?} step {step}: {difference}");
        }
    });
}

#[test]
fn steps_that_cannot_be_captured_run_directly() {
    on_every_device(67, |device, layers, noise, prompt| {
        let method = Method::DENSE;
        let [mut caches, state] = [(); 2].map(|()| layers.caches(prompt, 64, &method));
        // Appends two positions per step.
        let twice = |x: &Tensor<3>, caches: &mut [KvCache; 2], method: &Method| {
            layers.decode(x, caches, method)?;
            layers.decode(x, caches, method)
        };
        let mut captured = CapturedStep::new(state, method, twice);
        for _ in 0..30 {
            let x = random(noise, 1, 1, device);
            let want = twice(&x, &mut caches, &method).unwrap();
            let found = captured.step(x).unwrap();
            assert!(max_difference(&found, &want) < 1e-5, "{device:?}");
            assert!(!captured.is_captured());
        }
        assert_eq!(captured.into_state()[1].len(), 80);
    });
}

/// The case of lossless decoding: sparse steps, dense passes over several positions, and rollbacks
/// take turns. Each kind of step has a graph, and none is captured twice.
#[test]
fn steps_of_several_kinds_take_turns() {
    on_every_device(89, |device, layers, noise, prompt| {
        // Without codes, so that no ranges are due.
        let sparse = Method::from(SparqConfig::new(6, 12));
        let step = |x: &Tensor<3>, caches: &mut [KvCache; 2], method: &Method| {
            let mut x = x.clone();
            for (layer, cache) in layers.0.iter().zip(caches) {
                let y = match x.dims()[1] {
                    1 => layer.decode(x.clone(), cache, method)?,
                    _ => layer.forward(x.clone(), Some(cache))?,
                };
                x = x + y;
            }
            Ok(x)
        };
        let mut caches = layers.caches(prompt, 128, &sparse);
        let state = layers.caches(prompt, 128, &sparse);
        let mut captured = CapturedStep::new(state, sparse, step);
        let mut ties = 0;
        for round in 0..12 {
            let len = [3, 5][round % 2];
            let mut marks = [0, 1].map(|index| caches[index].mark());
            let mut others = [0, 1].map(|index| captured.state()[index].mark());
            for kind in [1, len] {
                captured.set_method(if kind == 1 { sparse } else { Method::DENSE });
                let method = captured.method();
                let x = random(noise, 1, kind, device);
                let want = step(&x, &mut caches, &method).unwrap();
                let found = captured.step_by(x, kind).unwrap();
                let difference = max_difference(&found, &want);
                // Two positions whose scores are equal but for rounding may change places.
                ties += usize::from(difference > 1e-4);
                assert!(difference < 0.5, "{device:?} {round}: {difference}");
                assert_eq!(captured.is_captured_by(kind), has_graphs(device));
                // The draft is taken back, and part of the pass.
                let kept = if kind == 1 { 0 } else { 2 };
                for index in [0, 1] {
                    caches[index].roll_back(&mut marks[index], &[kept]).unwrap();
                    let cache = &mut captured.caches_mut()[index];
                    cache.roll_back(&mut others[index], &[kept]).unwrap();
                }
            }
            assert_eq!(captured.state()[1].len(), 20 + 2 * (round + 1));
        }
        assert!(ties < 4, "{device:?}: {ties}");
        captured.set_method(sparse);
        let kept = [1, 3, 5].map(|kind| match kind {
            1 => captured.is_captured_by(1),
            _ => {
                captured.set_method(Method::DENSE);
                captured.is_captured_by(kind)
            }
        });
        assert_eq!(kept, [has_graphs(device); 3]);
    });
}

/// The case of a server: sequences join and leave a batch between replays. Only steps that set
/// ranges run uncaptured.
#[test]
fn sequences_join_and_leave_between_replays() {
    on_every_device(97, |device, layers, noise, _| {
        for sketch in [None, Some(Sketch::Bits4)] {
            let method = method_for(sketch, 6, 12);
            let mut prompt = |len| {
                let prompt = random(noise, 1, len, device);
                layers.caches(&prompt, 128, &method).map(|mut cache| {
                    cache.refresh_sketch();
                    cache
                })
            };
            let idle = [None; 3];
            let state = prompt(20).map(|cache| cache.select(&idle, 128).unwrap());
            let mut alone: [Option<[KvCache; 2]>; 3] = [None, None, None];
            let mut joining = vec![(0, 0, prompt(40)), (3, 2, prompt(16)), (9, 1, prompt(30))];
            let runs = Cell::new(0);
            let step = |x: &Tensor<3>, caches: &mut [KvCache; 2], method: &Method| {
                runs.set(runs.get() + 1);
                layers.decode(x, caches, method)
            };
            let mut captured = CapturedStep::new(state, method, step);
            let mut runs_of_capture = 0;
            for at in 0..70 {
                if let Some(index) = joining.iter().position(|&(first, ..)| first == at) {
                    let (_, place, caches) = joining.swap_remove(index);
                    for (batch, cache) in captured.caches_mut().iter_mut().zip(&caches) {
                        batch.write_sequence(place, cache).unwrap();
                    }
                    alone[place] = Some(caches);
                }
                if at == 30 {
                    let batch = captured.caches_mut().iter_mut();
                    batch.for_each(|batch| batch.set_idle(0).unwrap());
                    alone[0] = None;
                }
                let x = random(noise, 3, 1, device);
                let found = captured.step(x.clone()).unwrap();
                for (place, caches) in alone.iter_mut().enumerate() {
                    let Some(caches) = caches else { continue };
                    let row = |t: &Tensor<3>| t.clone().slice_dim(0, place..place + 1);
                    let want = layers.decode(&row(&x), caches, &method).unwrap();
                    let difference = max_difference(&row(&found), &want);
                    assert!(difference < 1e-3, "{device:?} {at} {place}: {difference}");
                }
                if at == 0 {
                    runs_of_capture = runs.get();
                }
            }
            if has_graphs(device) {
                assert!(captured.is_captured());
                // The length 16 doubles twice, and 30 once.
                let refreshes = if sketch.is_some() { 3 } else { 0 };
                assert_eq!(runs.get(), runs_of_capture + refreshes);
            }
        }
    });
}

/// The case of a server: a thread takes steps with weights of its own or, if the device supports
/// it, of the main thread.
#[test]
fn another_thread_can_capture() {
    let _alone = alone();
    for device in devices() {
        let others = Layers::new(&device);
        let method = Method::from(SparqConfig::new(6, 12));
        let steps = |layers: &Layers| {
            let mut noise = Noise(79);
            let prompt = random(&mut noise, 1, 20, &device);
            let mut caches = layers.caches(&prompt, 128, &method);
            let mut captured =
                CapturedStep::new(layers.caches(&prompt, 128, &method), method, layers.step());
            layers.assert_equal(&mut captured, &mut caches, &method, &mut noise, 20);
            captured.is_captured()
        };
        let captured = std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                let own = steps(&Layers::new(&device));
                match can_be_captured(&others.weight()) {
                    true => own && steps(&others),
                    false => own,
                }
            });
            run.join().unwrap()
        });
        assert_eq!(captured, has_graphs(&device), "{device:?}");
    }
}

/// Works whether or not the device can capture such caches.
#[test]
fn caches_of_another_thread_are_usable() {
    on_every_device(83, |_, layers, noise, prompt| {
        let method = Method::from(SparqConfig::new(6, 12));
        let caches = || layers.caches(prompt, 64, &method);
        let (mut caches, state) = std::thread::scope(|scope| {
            let made = scope.spawn(move || (caches(), caches()));
            made.join().unwrap()
        });
        let mut captured = CapturedStep::new(state, method, layers.step());
        layers.assert_equal(&mut captured, &mut caches, &method, noise, 10);
    });
}

/// An upload inside a capture is refused, or captured and repeated with each replay.
#[test]
fn uploads_are_refused_or_repeated() {
    on_every_device(71, |device, layers, noise, prompt| {
        let method = Method::DENSE;
        let mut captured = CapturedStep::new(
            layers.caches(prompt, 64, &method),
            method,
            |x: &Tensor<3>, caches: &mut [KvCache; 2], method: &Method| {
                let one = Tensor::<1, Int>::from_ints([1], &x.device());
                let y = layers.decode(x, caches, method)?;
                Ok(y * one.float().reshape([1, 1, 1]))
            },
        );
        let mut caches = layers.caches(prompt, 64, &method);
        for _ in 0..10 {
            let x = random(noise, 1, 1, device);
            match captured.step(x.clone()) {
                Ok(found) => {
                    let want = layers.decode(&x, &mut caches, &method).unwrap();
                    let difference = max_difference(&found, &want);
                    assert!(difference < 1e-4, "{device:?}: {difference}");
                }
                Err(error) => {
                    assert!(has_graphs(device), "{error}");
                    assert!(matches!(error, SparqError::Capture { .. }), "{error}");
                    break;
                }
            }
        }
    });
}

#[test]
fn errors_of_the_step_leave_the_caches_unchanged() {
    on_every_device(73, |device, layers, noise, prompt| {
        let method = Method::DENSE;
        let mut captured =
            CapturedStep::new(layers.caches(prompt, 64, &method), method, layers.step());
        captured.step(random(noise, 1, 1, device)).unwrap();
        let wrong = noise.tensor([1, 1, 1, D_MODEL + 1], device);
        let error = captured.step(wrong.squeeze_dim(0)).unwrap_err();
        assert!(matches!(error, SparqError::Shape { .. }), "{error}");
        assert_eq!(captured.state()[1].len(), 21);
        captured.step(random(noise, 1, 1, device)).unwrap();
        assert_eq!(captured.state()[1].len(), 22);
    });
}

#[test]
fn a_sliding_window_moves_on_the_device() {
    let _alone = alone();
    for device in devices() {
        let attention = SparqAttentionConfig::new(D_MODEL, 4, 2, 16)
            .with_rotary(Some(RotaryConfig::new(16)))
            .with_qk_norm_eps(Some(1e-6))
            .with_window(Some(24))
            .init(&device)
            .unwrap();
        for (sketch, rows) in [
            (Sketch::Full, RowFormat::Float),
            (Sketch::Bits4, RowFormat::Float),
            (Sketch::Bits4, RowFormat::Int8),
        ] {
            let method = method_for(Some(sketch), 6, 8);
            let config = attention.cache_config(1, 1, FloatDType::F32, &method);
            let config = config.with_rows(rows);
            let mut noise = Noise(17);
            let mut cache = new_cache(&config, &device);
            let prompt = random(&mut noise, 1, 10, &device);
            attention.forward(prompt, Some(&mut cache)).unwrap();
            let step = |x: &Tensor<3>, cache: &mut KvCache, method: &Method| {
                attention.decode(x.clone(), cache, method)
            };
            let mut captured = CapturedStep::new(cache.clone(), method, step);
            for at in 0..100 {
                let x = random(&mut noise, 1, 1, &device);
                let expected = attention.decode(x.clone(), &mut cache, &method).unwrap();
                let worst = max_difference(&captured.step(x).unwrap(), &expected);
                assert!(worst < 1e-5, "step {at} on {device:?}: {worst}");
            }
        }
    }
}
