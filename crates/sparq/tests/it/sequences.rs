//! Sequences that join and leave a cache of several, against caches of their own.

use burn::tensor::{Device, Int, Tensor};
use sparq::{KvCache, KvCacheConfig, Method, RowFormat, Sketch, SparqConfig, SparqError};

use crate::common::{
    ALL_SKETCHES, Noise, cache_config, devices, max_difference, method_for, new_cache, sequence,
    values,
};

/// Three sequences at most, each with a cache of its own beside its place in the batch.
struct Both {
    batch: KvCache,
    alone: [Option<KvCache>; 3],
    method: Method,
    noise: Noise,
    device: Device,
}

impl Both {
    fn new(config: KvCacheConfig, method: Method, device: &Device) -> Self {
        let config = KvCacheConfig {
            batch: 3,
            ..config.with_rows(method.rows())
        };
        let mut batch = new_cache(&config, device);
        (0..3).for_each(|sequence| batch.set_idle(sequence).unwrap());
        Self {
            batch,
            alone: [None, None, None],
            method,
            noise: Noise(91),
            device: device.clone(),
        }
    }

    /// A sequence with a prompt of `len` positions takes a place.
    fn join(&mut self, place: usize, len: usize) {
        let config = KvCacheConfig {
            batch: 1,
            ..*self.batch.config()
        };
        let mut cache = new_cache(&config, &self.device);
        let [k, v] = self.noise.tensors([1, 2, len, 16], &self.device);
        cache.append(k, v).unwrap();
        cache.refresh_sketch();
        self.batch.write_sequence(place, &cache).unwrap();
        self.alone[place] = Some(cache);
    }

    fn leave(&mut self, place: usize) {
        self.batch.set_idle(place).unwrap();
        self.alone[place] = None;
    }

    /// Takes steps of the batch, and of each sequence alone.
    fn step(&mut self, count: usize) {
        for _ in 0..count {
            let q = self.noise.tensor([3, 4, 1, 16], &self.device);
            let [k, v] = self.noise.tensors([3, 2, 1, 16], &self.device);
            let [own_q, own_k, own_v] = [&q, &k, &v].map(Tensor::clone);
            let q = self.batch.prepare(q, k, v, None).unwrap();
            let y = self.method.decode(q, &mut self.batch).unwrap();
            for (place, alone) in self.alone.iter_mut().enumerate() {
                let found = sequence(&y, place);
                let Some(cache) = alone else {
                    assert!(self.batch.is_idle(place));
                    assert!(values(&found).iter().all(|&y| y == 0.0), "{place}");
                    continue;
                };
                let [q, k, v] = [&own_q, &own_k, &own_v].map(|own| sequence(own, place));
                let q = cache.prepare(q, k, v, None).unwrap();
                let want = self.method.decode(q, cache).unwrap();
                let difference = max_difference(&found, &want);
                let (spans, len) = (self.batch.spans(), cache.len());
                assert!(
                    difference < 1e-4,
                    "{place} at {len}: {difference} {spans:?}"
                );
                assert_eq!(spans.end[place], len);
            }
        }
    }

    /// Three sequences of other lengths come and go.
    fn run(mut self) {
        self.join(1, 40);
        self.step(3);
        // Grows the batch.
        self.join(0, 130);
        self.step(45);
        self.join(2, 5);
        self.step(2);
        self.leave(0);
        self.step(2);
        // A shorter one in the place of a longer one.
        self.join(0, 30);
        self.step(4);
        self.leave(1);
        self.leave(2);
        self.step(35);
    }
}

#[test]
fn sequences_in_a_batch_equal_those_alone() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            let config = cache_config([1, 2, 16], sketch);
            Both::new(config, method_for(sketch, 6, 20), &device).run();
        }
    }
}

#[test]
fn sequences_under_a_window_equal_those_alone() {
    for device in devices() {
        for sketch in [None, Some(Sketch::Full), Some(Sketch::Bits4)] {
            let config = cache_config([1, 2, 16], sketch).with_window(Some(33));
            Both::new(config, method_for(sketch, 6, 20), &device).run();
        }
    }
}

#[test]
fn sequences_of_rows_in_8_bits_equal_those_alone() {
    for device in devices() {
        for sketch in [Sketch::Full, Sketch::Bits4] {
            let method = SparqConfig::new(6, 20).with_sketch(sketch);
            let method = Method::from(method.with_rows(RowFormat::Int8));
            let config = cache_config([1, 2, 16], Some(sketch));
            Both::new(config, method, &device).run();
        }
    }
}

#[test]
fn selected_sequences_keep_their_contents() {
    for device in devices() {
        for sketch in ALL_SKETCHES {
            let config = cache_config([1, 2, 16], sketch);
            let mut both = Both::new(config, method_for(sketch, 6, 20), &device);
            both.join(0, 70);
            both.join(2, 30);
            both.step(3);
            // Another order, and another capacity.
            both.batch = both.batch.select(&[Some(2), Some(0), None], 300).unwrap();
            assert_eq!((both.batch.capacity(), both.batch.len()), (320, 73));
            both.alone.swap(1, 0);
            both.alone.swap(0, 2);
            both.step(10);
            // No more than one of them needs.
            let one = both.batch.select(&[Some(0)], 0).unwrap();
            assert_eq!((one.batch(), one.capacity(), one.len()), (1, 64, 43));
            let spans = one.tensors().spans.clone().into_data();
            assert_eq!(spans.iter::<i64>().collect::<Vec<_>>(), [0, 43, 0]);
            both.batch = both.batch.select(&[Some(0), Some(1), None], 0).unwrap();
            both.join(2, 25);
            both.step(40);
        }
    }
}

#[test]
fn idle_sequence_takes_no_position() {
    for device in devices() {
        let mut noise = Noise(5);
        let config = cache_config([2, 2, 16], Some(Sketch::Full));
        let mut cache = new_cache(&config, &device);
        let mut append = |cache: &mut KvCache, len| {
            let new = noise.tensor([2, 2, len, 16], &device);
            cache.append(new.clone(), new).unwrap();
        };
        append(&mut cache, 10);
        cache.set_idle(0).unwrap();
        // Many at once, and one.
        append(&mut cache, 5);
        append(&mut cache, 1);
        assert_eq!((cache.spans().end.clone(), cache.len()), (vec![0, 16], 16));
        let mut mark = cache.mark();
        append(&mut cache, 1);
        append(&mut cache, 1);
        cache.roll_back(&mut mark, &[0, 1]).unwrap();
        cache.truncate(12);
        assert_eq!(cache.spans().end, [0, 12]);
        // On the device there is never room for it, whatever the capacity.
        let spans: Tensor<2, Int> = cache.tensors().spans.clone();
        let spans: Vec<i64> = spans.into_data().iter().collect();
        assert!(spans[0] == spans[2] && spans[2] > 1 << 24);
        assert_eq!([spans[1], spans[3], spans[4], spans[5]], [0, 12, 0, 0]);
        cache.clear();
        append(&mut cache, 2);
        assert_eq!(cache.spans().end, [2, 2]);
    }
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let device = &devices()[0];
    let config = cache_config([2, 2, 16], Some(Sketch::Bits4));
    let mut cache = new_cache(&config, device);
    let value = |found: Result<_, SparqError>, what: &str| {
        let error = found.map(|_: ()| ()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    value(cache.set_idle(2), "below 2");
    value(cache.select(&[], 0).map(|_| ()), "at least one");
    value(cache.select(&[Some(2)], 0).map(|_| ()), "below 2");
    let one = KvCacheConfig { batch: 1, ..config };
    for other in [
        config,
        KvCacheConfig { kv_heads: 3, ..one },
        one.with_sketch(Some(Sketch::Full)),
        one.with_sketch(None),
        one.with_window(Some(8)),
    ] {
        let other = new_cache(&other, device);
        value(cache.write_sequence(0, &other), "a batch of 1");
    }
    // A sketch that the batch does not hold is left out.
    let mut without = new_cache(&config.with_sketch(None), device);
    without.write_sequence(1, &new_cache(&one, device)).unwrap();
    // Received attention is that of all sequences.
    let mut recording = new_cache(&one, device);
    recording.record_attention().unwrap();
    value(cache.write_sequence(0, &recording), "no state");
}
