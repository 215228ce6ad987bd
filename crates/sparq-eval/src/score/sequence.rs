//! The similarity of texts, the score of MRCR: that of Python's `difflib.SequenceMatcher`
//! (Ratcliff and Metzener, "Pattern Matching: The Gestalt Approach", 1988).

use std::collections::HashMap;

/// The length of a text from which frequent characters are not the beginning of a match.
const LONG: usize = 200;

/// Returns twice the number of matching characters divided by the number of all, from 0 to 1.
///
/// Matches are found as in Python with its default for frequent characters, so that scores equal
/// the published ones.
///
/// ```
/// use sparq_eval::score::sequence_similarity;
///
/// assert_eq!(sequence_similarity("abcd", "bcde"), 0.75);
/// ```
pub fn sequence_similarity(output: &str, reference: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (output.chars().collect(), reference.chars().collect());
    if a.len() + b.len() == 0 {
        return 1.0;
    }
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    for (index, character) in b.iter().enumerate() {
        places.entry(*character).or_default().push(index);
    }
    if b.len() >= LONG {
        places.retain(|_, indices| indices.len() <= b.len() / 100 + 1);
    }
    let (mut matching, mut open) = (0, vec![(0, a.len(), 0, b.len())]);
    while let Some((a_low, a_high, b_low, b_high)) = open.pop() {
        let (i, j, length) = longest(&a, &b, &places, (a_low, a_high, b_low, b_high));
        if length > 0 {
            matching += length;
            open.push((a_low, i, b_low, j));
            open.push((i + length, a_high, j + length, b_high));
        }
    }
    2.0 * matching as f64 / (a.len() + b.len()) as f64
}

/// Returns the first longest match in a range of both texts: its two places and its length.
fn longest(
    a: &[char],
    b: &[char],
    places: &HashMap<char, Vec<usize>>,
    (a_low, a_high, b_low, b_high): (usize, usize, usize, usize),
) -> (usize, usize, usize) {
    let (mut i, mut j, mut length) = (a_low, b_low, 0);
    // The lengths of the matches that end at a place of b and at the previous place of a.
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for (at, character) in a.iter().enumerate().take(a_high).skip(a_low) {
        let mut next = HashMap::new();
        let indices = places.get(character).map_or(&[][..], Vec::as_slice);
        for &index in indices
            .iter()
            .filter(|&&index| (b_low..b_high).contains(&index))
        {
            let before = index.checked_sub(1).and_then(|before| ending.get(&before));
            let count = before.copied().unwrap_or(0) + 1;
            next.insert(index, count);
            if count > length {
                (i, j, length) = (at + 1 - count, index + 1 - count, count);
            }
        }
        ending = next;
    }
    // Frequent characters extend a match.
    while i > a_low && j > b_low && a[i - 1] == b[j - 1] {
        (i, j, length) = (i - 1, j - 1, length + 1);
    }
    while i + length < a_high && j + length < b_high && a[i + length] == b[j + length] {
        length += 1;
    }
    (i, j, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns square numbers with spaces.
    fn squares(range: std::ops::Range<usize>) -> String {
        let squares: Vec<String> = range.map(|number| (number * number).to_string()).collect();
        squares.join(" ")
    }

    #[test]
    fn similarity_equals_that_of_python() {
        let long = "the cat sat on the mat. ".repeat(12);
        let other = "the cat sat on the hat. ".repeat(11);
        for (a, b, expected) in [
            ("", "", 1.0),
            ("abc", "", 0.0),
            (
                "private Thread currentThread;",
                "private volatile Thread currentThread;",
                0.865_671_641_791_044_8,
            ),
            ("qabxcd", "abycdf", 0.666_666_666_666_666_6),
            (&other, &long, 0.068_840_579_710_144_93),
            (&squares(0..40), &squares(5..44), 0.9015873015873016),
        ] {
            let found = sequence_similarity(a, b);
            assert!((found - expected).abs() < 1e-12, "{a} {b}: {found}");
        }
    }
}
