//! How far a text is repeated.

/// Characters of `reference` before the first that `output` has otherwise or not at all, white space at the beginning of both left out.
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
    fn only_what_comes_before_the_first_difference_counts() {
        assert_eq!(matching_characters("abcxef", "abcdef"), 3);
        assert_eq!(matching_characters("xabc", "abc"), 0);
        assert_eq!(matching_characters("  abc", "\nabc"), 3);
    }

    #[test]
    fn an_output_that_ends_early_matches_as_far_as_it_goes() {
        assert_eq!(matching_characters("ab", "abcdef"), 2);
        assert_eq!(matching_characters("", "abc"), 0);
        assert_eq!(matching_characters("abcdef", "abc"), 3);
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        assert_eq!(matching_characters("äöx", "äöü"), 2);
    }
}
