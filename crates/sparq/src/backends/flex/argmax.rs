//! The largest element of each row.

/// Numbers compared at once, so that the compiler can use vectors.
const LANES: usize = 32;

/// Returns the index of the largest element of `row`, the lowest of equal ones, and whether all
/// elements are below infinity and one is above negative infinity.
pub(super) fn argmax(row: &[f32]) -> (usize, bool) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut ranked = [true; LANES];
    for chunk in row.chunks(LANES) {
        for ((largest, ranked), &x) in largest.iter_mut().zip(&mut ranked).zip(chunk) {
            *largest = if x > *largest { x } else { *largest };
            // False for NaN too.
            *ranked &= x < f32::INFINITY;
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let index = row.iter().position(|&x| x == largest).unwrap_or(0);
    let valid = ranked == [true; LANES] && largest > f32::NEG_INFINITY;
    (index, valid)
}
