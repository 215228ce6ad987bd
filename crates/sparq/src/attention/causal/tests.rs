use burn::tensor::{Distribution, Tolerance};

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
    rows: Spans,
    window: Option<usize>,
}

const D: usize = 8;

impl Case {
    fn seq_len(&self) -> usize {
        self.rows.longest() + self.len
    }

    fn random(&self, device: &Device) -> [Tensor<4>; 3] {
        let random = |heads, len| {
            Tensor::<4>::random(
                [self.rows.batch(), heads, len, D],
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
        for (row, head, query) in self.queries() {
            let own = self.rows.end[row] + query;
            let first = self
                .window
                .map_or(0, |window| (own + 1).saturating_sub(window));
            let seen: Vec<usize> = (self.rows.start[row].min(own).max(first)..=own).collect();
            let q = &q[((row * self.heads + head) * self.len + query) * D..][..D];
            let base = (row * self.kv_heads + head / (self.heads / self.kv_heads)) * self.seq_len();
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
        let (batch, heads, len) = (self.rows.batch(), self.heads, self.len);
        (0..batch).flat_map(move |row| {
            (0..heads).flat_map(move |head| (0..len).map(move |query| (row, head, query)))
        })
    }
}

fn assert_equals_the_definition(rows: &Spans) {
    for device in devices() {
        for (heads, kv_heads) in [(2, 2), (4, 2), (3, 1)] {
            for window in [None, Some(1), Some(5), Some(12), Some(100)] {
                let case = Case {
                    heads,
                    kv_heads,
                    len: 11,
                    rows: rows.clone(),
                    window,
                };
                let qkv = case.random(&device);
                let shape = [rows.batch(), heads, 11, D];
                let expected = burn::tensor::TensorData::new(case.expected(&qkv), shape);
                for chunk in [1, 4, 11, 64] {
                    let [q, k, v] = qkv.clone();
                    let y = causal_attention(q, k, v, rows, window, chunk);
                    y.into_data()
                        .assert_approx_eq::<f32>(&expected, Tolerance::absolute(2e-6));
                }
            }
        }
    }
}

#[test]
fn a_query_sees_everything_up_to_itself_whatever_the_chunks() {
    assert_equals_the_definition(&Spans::empty(2));
}

#[test]
fn queries_behind_a_cache_see_all_of_it() {
    assert_equals_the_definition(&Spans::full(2, 7));
}

#[test]
fn left_padding_is_seen_by_itself_only() {
    assert_equals_the_definition(&Spans {
        start: vec![0, 5, 13],
        end: vec![0; 3],
    });
    assert_equals_the_definition(&Spans {
        start: vec![3, 0],
        end: vec![9, 9],
    });
}

#[test]
fn sequences_of_different_lengths_continue_where_each_ends() {
    assert_equals_the_definition(&Spans {
        start: vec![0, 2, 0],
        end: vec![3, 9, 0],
    });
}

#[test]
fn long_sequences_equal_the_definition_in_chunks_of_the_real_size() {
    // Enough keys for the tiled kernel of flex, which shorter sequences don't reach.
    for device in devices() {
        let rows = Spans {
            start: vec![100],
            end: vec![150],
        };
        for window in [None, Some(200)] {
            let case = Case {
                heads: 2,
                kv_heads: 1,
                len: CHUNK + 37,
                rows: rows.clone(),
                window,
            };
            let qkv = case.random(&device);
            let shape = [1, 2, CHUNK + 37, D];
            let expected = burn::tensor::TensorData::new(case.expected(&qkv), shape);
            let [q, k, v] = qkv;
            causal_attention(q, k, v, &rows, window, CHUNK)
                .into_data()
                .assert_approx_eq::<f32>(&expected, Tolerance::absolute(2e-6));
        }
    }
}
