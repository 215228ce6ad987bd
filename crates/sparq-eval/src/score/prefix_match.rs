//! Prefix match, the score of question answering: whether an answer begins with a correct one.

/// Returns whether a character around an answer is removed.
fn is_trimmed(character: char) -> bool {
    character.is_whitespace() || matches!(character, '"' | '\'' | '_' | '.' | ',')
}

/// The leading articles. One is removed.
const ARTICLES: [&str; 3] = ["the ", "a ", "an "];

/// Returns the text in lower case, without quotes, spaces, full stops, commas and underscores at
/// both ends and without a leading article.
fn normalize(text: &str) -> String {
    let text = text.to_lowercase();
    let text = text.trim_start_matches(is_trimmed);
    let article = ARTICLES
        .iter()
        .find_map(|article| text.strip_prefix(article));
    article
        .unwrap_or(text)
        .trim_end_matches(is_trimmed)
        .to_owned()
}

/// Returns whether `output` begins with one of `answers`. Both are normalised: lower case, without
/// a leading article and punctuation around them. An answer that is then empty matches nothing.
///
/// ```
/// use sparq_eval::score::prefix_match;
///
/// assert!(prefix_match("\n The Beatles, of course", &["the Beatles"]));
/// assert!(!prefix_match("my bicycle", &["bicycle"]));
/// ```
pub fn prefix_match<S: AsRef<str>>(output: &str, answers: &[S]) -> bool {
    let output = normalize(output);
    answers
        .iter()
        .map(|answer| normalize(answer.as_ref()))
        .any(|answer| !answer.is_empty() && output.starts_with(&answer))
}

/// Returns whether no text after `output` can change the result of [`prefix_match`].
pub(super) fn is_settled<S: AsRef<str>>(output: &str, answers: &[S]) -> bool {
    let lower = output.to_lowercase();
    let begun = lower.trim_start_matches(is_trimmed);
    // "th" may become an article, which is removed.
    if ARTICLES.iter().any(|article| article.starts_with(begun)) {
        return false;
    }
    let article = ARTICLES
        .iter()
        .find_map(|article| begun.strip_prefix(article));
    let begun = article.unwrap_or(begun);
    let mut answers = answers.iter().map(|answer| normalize(answer.as_ref()));
    // A match stays a match. A future match has to continue this beginning.
    prefix_match(output, &answers.clone().collect::<Vec<_>>())
        || answers.all(|answer| answer.is_empty() || !answer.starts_with(begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_outputs_are_normalised() {
        for (output, answers) in [
            ("bicycle", ["car", "bicycle"]),
            (" bicycle", ["car", "bicycle"]),
            ("\n\n 'the BICYCLE is a fine...", ["car", "a Bicycle."]),
            ("_An apple_", ["\"Apple\"", "pear"]),
            ("U.S. troops", ["U.S.", "America"]),
        ] {
            assert!(prefix_match(output, &answers), "{output:?} {answers:?}");
        }
    }

    #[test]
    fn answers_elsewhere_do_not_match() {
        for (output, answers) in [
            ("my bicycle", ["car", "bicycle"]),
            ("bicycle", ["car", "your bicycle"]),
            ("bicycle", ["car", "'.'"]),
            ("", ["car", ""]),
            ("the a car", ["car", "van"]),
            ("a _car", ["car", "van"]),
        ] {
            assert!(!prefix_match(output, &answers), "{output:?} {answers:?}");
        }
    }

    #[test]
    fn answers_settle_when_found_or_impossible() {
        for output in ["", " ", "t", "The", " the ", "the be", "beatle"] {
            assert!(!is_settled(output, &["The Beatles."]), "{output:?}");
        }
        for output in ["thx", "a band", "rolling", "the beatles", "Beatles of"] {
            assert!(is_settled(output, &["The Beatles."]), "{output:?}");
        }
        // The answer "the" is an article if a space follows.
        assert!(!is_settled("the", &["the"]));
    }
}
