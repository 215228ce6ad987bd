//! Orthonormal bases computed on the host: random directions, and the principal directions of keys.

/// A generator with the same numbers on every platform: sums of uniforms from a linear congruential
/// generator's upper bits.
struct Noise(u64);

impl Noise {
    fn normal(&mut self) -> f64 {
        let mut uniform = || {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..12).map(|_| uniform()).sum::<f64>() - 6.0
    }
}

/// Returns `rank` random orthonormal directions in `d` dimensions for one KV head, as a row-major
/// matrix [d, rank].
pub(super) fn random(d: usize, rank: usize, head: usize) -> Vec<f32> {
    let mut noise = Noise(0x5eed + head as u64);
    let mut directions: Vec<Vec<f64>> = Vec::new();
    while directions.len() < rank {
        let mut new: Vec<f64> = (0..d).map(|_| noise.normal()).collect();
        // Twice: a single pass leaves a rounding error along the removed directions.
        for _ in 0..2 {
            for known in &directions {
                let along: f64 = new.iter().zip(known).map(|(a, b)| a * b).sum();
                new.iter_mut().zip(known).for_each(|(a, b)| *a -= along * b);
            }
        }
        let length = new.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 1e-6 {
            directions.push(new.into_iter().map(|x| x / length).collect());
        }
    }
    columns(&directions, d)
}

/// Returns the `rank` eigenvectors of a symmetric matrix [d, d] with the largest eigenvalues, as
/// [d, rank]. Computed with Jacobi rotations.
pub(super) fn principal(matrix: &[f32], d: usize, rank: usize) -> Vec<f32> {
    let mut a: Vec<f64> = matrix.iter().map(|&x| f64::from(x)).collect();
    let mut vectors: Vec<f64> = (0..d * d)
        .map(|at| if at / d == at % d { 1.0 } else { 0.0 })
        .collect();
    let scale: f64 = a.iter().map(|x| x * x).sum();
    for _sweep in 0..30 {
        let off: f64 = (0..d)
            .flat_map(|row| (0..row).map(move |column| (row, column)))
            .map(|(row, column)| a[row * d + column] * a[row * d + column])
            .sum();
        // A NaN in a key makes every rotation meaningless.
        if off.is_nan() || off <= 1e-18 * scale {
            break;
        }
        for p in 0..d {
            for q in p + 1..d {
                rotate(&mut a, &mut vectors, d, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&i, &j| a[j * d + j].total_cmp(&a[i * d + i]));
    let direction = |&row: &usize| vectors[row * d..(row + 1) * d].to_vec();
    let directions: Vec<Vec<f64>> = order[..rank].iter().map(direction).collect();
    columns(&directions, d)
}

/// Applies the Jacobi rotation that zeroes the element (p, q) of a symmetric matrix, also to the
/// rows of `vectors`.
fn rotate(a: &mut [f64], vectors: &mut [f64], d: usize, p: usize, q: usize) {
    let off = a[p * d + q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q * d + q] - a[p * d + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for i in 0..d {
        let (x, y) = (a[i * d + p], a[i * d + q]);
        a[i * d + p] = c * x - s * y;
        a[i * d + q] = s * x + c * y;
    }
    for i in 0..d {
        let (x, y) = (a[p * d + i], a[q * d + i]);
        a[p * d + i] = c * x - s * y;
        a[q * d + i] = s * x + c * y;
        let (x, y) = (vectors[p * d + i], vectors[q * d + i]);
        vectors[p * d + i] = c * x - s * y;
        vectors[q * d + i] = s * x + c * y;
    }
}

/// Returns the directions as the columns of a matrix [d, rank].
fn columns(directions: &[Vec<f64>], d: usize) -> Vec<f32> {
    let row = |row: usize| directions.iter().map(move |x| x[row] as f32);
    (0..d).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products(basis: &[f32], d: usize, rank: usize) -> Vec<f64> {
        let column = |c: usize| (0..d).map(move |row| f64::from(basis[row * rank + c]));
        let pairs = |at| column(at / rank).zip(column(at % rank));
        let product = |at| pairs(at).map(|(a, b)| a * b).sum();
        (0..rank * rank).map(product).collect()
    }

    #[test]
    fn bases_are_orthonormal() {
        let mut noise = Noise(3);
        let half: Vec<f64> = (0..20 * 20).map(|_| noise.normal()).collect();
        let element = |at: usize| (half[at] + half[at % 20 * 20 + at / 20]) as f32;
        let matrix: Vec<f32> = (0..400).map(element).collect();
        for basis in [random(20, 7, 2), principal(&matrix, 20, 7)] {
            for (at, product) in products(&basis, 20, 7).into_iter().enumerate() {
                let expected = if at / 7 == at % 7 { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-6, "{at}: {product}");
            }
        }
    }

    #[test]
    fn principal_directions_are_the_rotated_axes() {
        // 5 along (0.6, 0.8, 0), 2 along (-0.8, 0.6, 0), 1 along (0, 0, 1).
        let matrix = [3.08, 1.44, 0.0, 1.44, 3.92, 0.0, 0.0, 0.0, 1.0];
        let basis = principal(&matrix, 3, 2);
        let expected = [0.6, -0.8, 0.8, 0.6, 0.0, 0.0];
        for column in 0..2 {
            let sign = (basis[column] * expected[column]).signum();
            for row in 0..3 {
                let at = row * 2 + column;
                assert!((sign * basis[at] - expected[at]).abs() < 1e-6, "{basis:?}");
            }
        }
    }
}
