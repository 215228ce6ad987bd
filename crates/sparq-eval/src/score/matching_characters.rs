//! Matching characters, the score of continuations.

/// Counts the characters of `reference` before the first that differs or is missing in `output`.
/// Ignores white space at the beginning of both.
///
/// ```
/// use sparq_eval::score::matching_characters;
///
/// assert_eq!(matching_characters(" to be and not", "to be or not"), 6);
/// ```
pub fn matching_characters(output: &str, reference: &str) -> usize {
    let (output, reference) = (output.trim_start(), reference.trim_start());
    output
        .chars()
        .zip(reference.chars())
        .take_while(|(a, b)| a == b)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_stops_at_the_first_difference() {
        assert_eq!(matching_characters("abcxef", "abcdef"), 3);
        assert_eq!(matching_characters("xabc", "abc"), 0);
        assert_eq!(matching_characters("  abc", "\nabc"), 3);
    }

    #[test]
    fn count_stops_at_the_end_of_the_output() {
        assert_eq!(matching_characters("ab", "abcdef"), 2);
        assert_eq!(matching_characters("", "abc"), 0);
        assert_eq!(matching_characters("abcdef", "abc"), 3);
    }

    #[test]
    fn count_is_of_characters_not_bytes() {
        assert_eq!(matching_characters("äöx", "äöü"), 2);
    }
}
