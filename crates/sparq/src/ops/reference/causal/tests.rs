use burn::tensor::{Distribution, TensorData, Tolerance};

use super::*;

fn devices() -> Vec<Device> {
    if std::env::var_os("BURN_DEVICE").is_some() {
        return vec![Device::default()];
    }
    vec![
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)]
        Device::ndarray(),
        #[cfg(feature = "vulkan")]
        Device::vulkan(burn::tensor::DeviceKind::DefaultDevice),
    ]
}

/// Queries, keys and values as lists, for the definition of attention written out in f64.
struct Case {
    heads: usize,
    kv_heads: usize,
    len: usize,
    /// The spans before the queries.
    spans: Spans,
    window: Option<usize>,
}

const D: usize = 8;

impl Case {
    fn seq_len(&self) -> usize {
        self.spans.longest() + self.len
    }

    fn random(&self, device: &Device) -> [Tensor<4>; 3] {
        let random = |heads, len| {
            Tensor::<4>::random(
                [self.spans.batch(), heads, len, D],
                Distribution::Normal(0.0, 1.0),
                device,
            )
        };
        [
            random(self.heads, self.len),
            random(self.kv_heads, self.seq_len()),
            random(self.kv_heads, self.seq_len()),
        ]
    }

    fn expected(&self, qkv: &[Tensor<4>; 3]) -> Vec<f32> {
        let [q, k, v] = qkv
            .clone()
            .map(|t| t.into_data().try_to_vec::<f32>().unwrap());
        let mut y = Vec::new();
        for (sequence, head, query) in self.queries() {
            let own = self.spans.end[sequence] + query;
            let first = self
                .window
                .map_or(0, |window| (own + 1).saturating_sub(window));
            let seen: Vec<usize> = (self.spans.start[sequence].min(own).max(first)..=own).collect();
            let q = &q[((sequence * self.heads + head) * self.len + query) * D..][..D];
            let base =
                (sequence * self.kv_heads + head / (self.heads / self.kv_heads)) * self.seq_len();
            let dot = |at: usize| {
                (0..D)
                    .map(|i| f64::from(q[i]) * f64::from(k[(base + at) * D + i]))
                    .sum::<f64>()
            };
            let weights: Vec<f64> = seen
                .iter()
                .map(|&at| (dot(at) / (D as f64).sqrt()).exp())
                .collect();
            let sum: f64 = weights.iter().sum();
            let value = |i: usize| {
                seen.iter()
                    .zip(&weights)
                    .map(|(&at, w)| w * f64::from(v[(base + at) * D + i]))
                    .sum::<f64>()
            };
            y.extend((0..D).map(|i| (value(i) / sum) as f32));
        }
        y
    }

    fn queries(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (batch, heads, len) = (self.spans.batch(), self.heads, self.len);
        (0..batch).flat_map(move |sequence| {
            (0..heads).flat_map(move |head| (0..len).map(move |query| (sequence, head, query)))
        })
    }
}

impl Case {
    /// Compares attention in chunks of these lengths with the definition, on every device.
    fn check(&self, chunks: &[usize]) {
        for device in devices() {
            let qkv = self.random(&device);
            let shape = [self.spans.batch(), self.heads, self.len, D];
            let expected = TensorData::new(self.expected(&qkv), shape);
            for &chunk in chunks {
                let [q, k, v] = qkv.clone();
                let spans = self.spans.grown(&vec![self.len; self.spans.batch()]);
                let y = in_chunks(q, k, v, &spans, (self.window, None), chunk);
                y.into_data()
                    .assert_approx_eq::<f32>(&expected, Tolerance::absolute(2e-6));
            }
        }
    }
}

fn assert_equals_the_definition(start: &[usize], end: &[usize]) {
    for (heads, kv_heads) in [(2, 2), (4, 2), (3, 1)] {
        for window in [None, Some(1), Some(5), Some(12), Some(100)] {
            let case = Case {
                heads,
                kv_heads,
                len: 11,
                spans: Spans {
                    start: start.to_vec(),
                    end: end.to_vec(),
                },
                window,
            };
            case.check(&[1, 4, 11, 64]);
        }
    }
}

#[test]
fn queries_attend_up_to_themselves() {
    assert_equals_the_definition(&[0, 0], &[0, 0]);
}

#[test]
fn queries_attend_to_the_whole_cache() {
    assert_equals_the_definition(&[0, 0], &[7, 7]);
}

#[test]
fn left_padding_attends_to_itself_only() {
    assert_equals_the_definition(&[0, 5, 13], &[0, 0, 0]);
    assert_equals_the_definition(&[3, 0], &[9, 9]);
}

#[test]
fn ragged_sequences_continue_at_their_ends() {
    assert_equals_the_definition(&[0, 2, 0], &[3, 9, 0]);
}

#[test]
fn full_chunks_equal_the_definition() {
    for window in [None, Some(200)] {
        // Enough keys for the tiled kernel of flex, which shorter sequences do not reach.
        let case = Case {
            heads: 2,
            kv_heads: 1,
            len: CHUNK + 37,
            spans: Spans {
                start: vec![100],
                end: vec![150],
            },
            window,
        };
        case.check(&[CHUNK]);
    }
}
