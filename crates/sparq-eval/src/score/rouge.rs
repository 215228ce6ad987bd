//! ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004).

use rust_stemmers::{Algorithm, Stemmer};

/// The number of letters up to which words are not stemmed.
const UNSTEMMED: usize = 3;

/// Returns the F score of the longest common subsequence of words, from 0 to 1.
///
/// Words are runs of ASCII letters and digits in lower case. Words of more than three letters are
/// stemmed, with Snowball's stemmer for English. The paper's authors used the package
/// `rouge_score`, whose stemmer (Porter's first) differs for a few words.
///
/// ```
/// use sparq_eval::score::rouge_l;
///
/// // Four words in common and in order, of five and six: precision 4/5, recall 4/6.
/// let f = rouge_l("the cat sat the mat", "the cat lay on the mat");
/// assert!((f - 2.0 * (4.0 / 5.0) * (4.0 / 6.0) / (4.0 / 5.0 + 4.0 / 6.0)).abs() < 1e-12);
/// ```
pub fn rouge_l(output: &str, reference: &str) -> f64 {
    let (output, reference) = (words(output), words(reference));
    let common = common_subsequence(&output, &reference) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (
        common / output.len() as f64,
        common / reference.len() as f64,
    );
    2.0 * precision * recall / (precision + recall)
}

fn words(text: &str) -> Vec<String> {
    let stemmer = Stemmer::create(Algorithm::English);
    text.to_lowercase()
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| match word.len() > UNSTEMMED {
            true => stemmer.stem(word).into_owned(),
            false => word.to_owned(),
        })
        .collect()
}

/// Returns the length of the longest common subsequence. Keeps one row of the dynamic programming
/// table.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (index, other) in b.iter().enumerate() {
            let above = row[index + 1];
            row[index + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[index])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn scores_equal_those_of_the_paper() {
        // Lin 2004, Section 3.1, with beta = 1: 4, 3, 2 and 2 of 4 words are in order.
        let reference = "police killed the gunman";
        assert!(
            close(rouge_l("police kill the gunman", reference), 1.0),
            "stems agree"
        );
        assert!(close(rouge_l("police shot the gunman", reference), 0.75));
        assert!(close(rouge_l("the gunman shot police", reference), 0.5));
        assert!(close(rouge_l("the gunman police shot", reference), 0.5));
    }

    #[test]
    fn case_and_punctuation_do_not_count() {
        assert!(close(
            rouge_l("Rouge -- is: French!", "rouge is french"),
            1.0
        ));
        assert!(close(rouge_l("a-b", "a b"), 1.0));
    }

    #[test]
    fn texts_without_common_words_score_zero() {
        assert_eq!(rouge_l("blah blah", "please listen"), 0.0);
        assert_eq!(rouge_l("", "please"), 0.0);
        assert_eq!(rouge_l("please", ""), 0.0);
        assert_eq!(rouge_l("", ""), 0.0);
    }

    #[test]
    fn word_order_counts() {
        // The longest common subsequence, a b, has two of three words.
        assert!(close(rouge_l("a b c", "c a b"), 2.0 / 3.0));
    }
}
