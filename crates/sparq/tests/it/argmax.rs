//! The most probable tokens of logits against a search on the host.

use burn::tensor::{Tensor, TensorData};
use sparq::ops;

use crate::common::{Noise, devices};

/// The index of the largest element, the lowest of equal ones.
fn search(row: &[f32]) -> i64 {
    let mut best = 0;
    for (index, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = index;
        }
    }
    best as i64
}

fn argmax(rows: &[Vec<f32>], device: &burn::tensor::Device) -> [Vec<i64>; 2] {
    let shape = [rows.len(), rows[0].len()];
    let data = TensorData::new(rows.concat(), shape);
    let found = ops::argmax(Tensor::<2>::from_data(data, device));
    assert_eq!(found.dims(), [2, rows.len()]);
    let mut found: Vec<i64> = found.into_data().iter::<i64>().collect();
    let valid = found.split_off(rows.len());
    [found, valid]
}

#[test]
fn argmax_is_that_of_a_search() {
    for device in devices() {
        for (rows, width) in [
            (1, 1),
            (3, 5),
            (2, 257),
            (5, 4096),
            (2, 40_001),
            (1, 131_072),
        ] {
            let mut noise = Noise(width as u64);
            let rows: Vec<Vec<f32>> = (0..rows).map(|_| noise.values(width)).collect();
            let want: Vec<i64> = rows.iter().map(|row| search(row)).collect();
            assert_eq!(
                argmax(&rows, &device),
                [want, vec![1; rows.len()]],
                "{device:?}"
            );
        }
    }
}

#[test]
fn argmax_takes_the_first_of_equal_elements() {
    for device in devices() {
        let mut row = vec![-1.0; 9000];
        for index in [8999, 5000, 4095, 700] {
            row[index] = 2.0;
            assert_eq!(argmax(&[row.clone()], &device)[0], [index as i64]);
        }
        let zeros = [0.0, -0.0, 0.0].to_vec();
        assert_eq!(argmax(&[[-0.0].to_vec()], &device), [vec![0], vec![1]]);
        assert_eq!(
            argmax(&[zeros.clone(), vec![-0.0, 0.0, -1.0]], &device)[0],
            [0, 0]
        );
    }
}

#[test]
fn argmax_tells_rows_without_a_candidate() {
    let (nan, infinite) = (f32::NAN, f32::INFINITY);
    for device in devices() {
        let rows = [
            vec![0.5, -infinite, 1.5],
            vec![0.5, nan, 1.5],
            vec![0.5, -nan, 1.5],
            vec![0.5, infinite, 1.5],
            vec![-infinite; 3],
        ];
        let [indices, valid] = argmax(&rows, &device);
        assert_eq!(valid, [1, 0, 0, 0, 0], "{device:?}");
        assert_eq!(indices[0], 2);
        assert!(
            indices.iter().all(|index| (0..3).contains(index)),
            "{indices:?}"
        );
    }
}

#[test]
fn a_read_has_the_result_of_the_work_meanwhile() {
    for device in devices() {
        let found = ops::argmax(Tensor::<2>::from_floats([[1.0, 3.0], [2.0, 1.0]], &device));
        let next = found.clone();
        let (data, sum) = ops::read_while(found, || (next + 5).into_data());
        let data: Vec<i64> = data.unwrap().iter::<i64>().collect();
        assert_eq!(data, [1, 0, 1, 1]);
        assert_eq!(sum.iter::<i64>().collect::<Vec<_>>(), [6, 5, 6, 6]);
    }
}
