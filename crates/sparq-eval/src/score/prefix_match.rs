//! Whether an answer begins with a right one: the score of the question answering tasks.

/// What stands around an answer without being a part of it.
fn is_trimmed(character: char) -> bool {
    character.is_whitespace() || matches!(character, '"' | '\'' | '_' | '.' | ',')
}

/// Leading articles, of which one is dropped.
const ARTICLES: [&str; 3] = ["the ", "a ", "an "];

/// Lower case, without quotes, spaces, full stops, commas and underscores at both ends and without a leading article.
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

/// Whether `output` begins with one of `answers`, both normalised: lower case, without an article and what stands around it. An answer of which
/// nothing is left matches nothing.
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

/// Whether [`prefix_match`] stays what it is, whatever is written behind `output`.
pub(super) fn is_settled<S: AsRef<str>>(output: &str, answers: &[S]) -> bool {
    let lower = output.to_lowercase();
    let begun = lower.trim_start_matches(is_trimmed);
    // "th" may become an article, which is dropped.
    if ARTICLES.iter().any(|article| article.starts_with(begun)) {
        return false;
    }
    let article = ARTICLES
        .iter()
        .find_map(|article| begun.strip_prefix(article));
    let begun = article.unwrap_or(begun);
    let mut answers = answers.iter().map(|answer| normalize(answer.as_ref()));
    // A match stays one. One that is to come goes on from here.
    prefix_match(output, &answers.clone().collect::<Vec<_>>())
        || answers.all(|answer| answer.is_empty() || !answer.starts_with(begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_normalised() {
        for (output, answers) in [
            ("bicycle", ["car", "bicycle"]),
            (" bicycle", ["car", "bicycle"]),
            ("\n\n 'the BICYCLE is a fine...", ["car", "a Bicycle."]),
            ("an _apple_", ["\"Apple\"", "pear"]),
            ("U.S. troops", ["U.S.", "America"]),
        ] {
            assert!(prefix_match(output, &answers), "{output:?} {answers:?}");
        }
    }

    #[test]
    fn a_right_answer_elsewhere_is_none() {
        for (output, answers) in [
            ("my bicycle", ["car", "bicycle"]),
            ("bicycle", ["car", "your bicycle"]),
            ("bicycle", ["car", "'.'"]),
            ("", ["car", ""]),
            ("the a car", ["car", "van"]),
        ] {
            assert!(!prefix_match(output, &answers), "{output:?} {answers:?}");
        }
    }

    #[test]
    fn an_answer_is_settled_when_it_is_there_or_can_no_longer_come() {
        for output in ["", " ", "t", "The", " the ", "the be", "beatle"] {
            assert!(!is_settled(output, &["The Beatles."]), "{output:?}");
        }
        for output in ["thx", "a band", "rolling", "the beatles", "Beatles of"] {
            assert!(is_settled(output, &["The Beatles."]), "{output:?}");
        }
        // What looks like the answer is an article if a space follows.
        assert!(!is_settled("the", &["the"]));
    }
}
