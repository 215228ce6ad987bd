//! String match, the score of RULER: references that occur anywhere in an answer.

/// Returns whether `reference` occurs in `output`, without regard to case. `output` is in lower
/// case.
fn occurs(output: &str, reference: &str) -> bool {
    output.contains(&reference.to_lowercase())
}

/// Returns the share of references that occur in the output, without regard to case. 0 without
/// references.
///
/// ```
/// use sparq_eval::score::string_match_all;
///
/// assert_eq!(string_match_all("They are A1, b2.", &["a1", "B2", "C3", "d4"]), 0.5);
/// ```
pub fn string_match_all<S: AsRef<str>>(output: &str, references: &[S]) -> f64 {
    let output = output.to_lowercase();
    let found = references.iter();
    let found = found.filter(|reference| occurs(&output, reference.as_ref()));
    found.count() as f64 / references.len().max(1) as f64
}

/// Returns 1 if any of the references occurs in the output, without regard to case, else 0.
///
/// ```
/// use sparq_eval::score::string_match_part;
///
/// assert_eq!(string_match_part(" Saint Bernadette", &["Bernadette", "Mary"]), 1.0);
/// ```
pub fn string_match_part<S: AsRef<str>>(output: &str, references: &[S]) -> f64 {
    match string_match_all(output, references) > 0.0 {
        true => 1.0,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_count_wherever_they_occur() {
        let references = ["12345", "rose-garden"];
        for (output, all, part) in [
            (" 12345, and the Rose-Garden", 1.0, 1.0),
            ("x12345x", 0.5, 1.0),
            ("1234 5", 0.0, 0.0),
            ("", 0.0, 0.0),
        ] {
            assert_eq!(string_match_all(output, &references), all, "{output}");
            assert_eq!(string_match_part(output, &references), part, "{output}");
        }
        assert_eq!(string_match_all::<&str>("text", &[]), 0.0);
    }
}
