//! The scores of short answers in LongBench v2 and InfiniteBench.

use std::collections::HashMap;

/// Returns the letter from A to D that an answer chooses: its first character, or after "correct
/// answer is", with or without brackets.
///
/// ```
/// use sparq_eval::score::chosen_letter;
///
/// assert_eq!(chosen_letter(" B. The king"), Some('B'));
/// assert_eq!(chosen_letter("The correct answer is (C)."), Some('C'));
/// assert_eq!(chosen_letter("Because of it"), None);
/// ```
pub fn chosen_letter(output: &str) -> Option<char> {
    const PHRASE: &str = "correct answer is";
    let output = output.replace('*', "");
    let after = output.find(PHRASE).map(|at| &output[at + PHRASE.len()..]);
    let begin = after
        .unwrap_or(&output)
        .trim_start_matches([' ', '\n', ':', '(']);
    let mut characters = begin.chars();
    let letter = characters
        .next()
        .filter(|letter| ('A'..='D').contains(letter))?;
    // "Because" is a word, not a choice.
    match characters.next() {
        Some(next) if next.is_alphanumeric() => None,
        _ => Some(letter),
    }
}

/// Returns the first number of an answer, with decimals if it has them.
pub fn first_number(output: &str) -> Option<f64> {
    let begin = output.find(|c: char| c.is_ascii_digit())?;
    let text = &output[begin..];
    let whole = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let rest = text[whole..].strip_prefix('.');
    let decimals = rest.map_or(0, |rest| {
        rest.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len())
    });
    let end = whole + if decimals > 0 { decimals + 1 } else { 0 };
    text[..end].parse().ok()
}

/// Returns whether a word occurs in an answer, without regard to case. Punctuation ends words.
pub fn has_word(output: &str, word: &str) -> bool {
    let marks = |c: char| c.is_whitespace() || ":\"'.,?!{}`".contains(c);
    output
        .split(marks)
        .any(|found| found.eq_ignore_ascii_case(word))
}

/// Returns the F score of the words of an answer for the best reference, from 0 to 1, without
/// regard to case, punctuation, articles and order.
///
/// ```
/// use sparq_eval::score::token_f1;
///
/// assert_eq!(token_f1("The old king.", &["king", "queen"]), 2.0 / 3.0);
/// ```
pub fn token_f1<S: AsRef<str>>(output: &str, references: &[S]) -> f64 {
    let output = words(output);
    let scores = references
        .iter()
        .map(|reference| f1(&output, &words(reference.as_ref())));
    scores.fold(0.0, f64::max)
}

fn words(text: &str) -> Vec<String> {
    let kept: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let kept = kept.to_lowercase();
    let words = kept.split_whitespace();
    let words = words.filter(|word| !["a", "an", "the"].contains(word));
    words.map(str::to_owned).collect()
}

fn f1(output: &[String], reference: &[String]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in reference {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0.0;
    for word in output {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1.0;
        }
    }
    match common > 0.0 {
        true => 2.0 * common / (output.len() + reference.len()) as f64,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_alone() {
        for (output, letter) in [
            ("(A) x", Some('A')),
            ("\nD", Some('D')),
            ("E", None),
            ("A1", None),
            ("**The correct answer is B**", Some('B')),
            ("", None),
        ] {
            assert_eq!(chosen_letter(output), letter, "{output}");
        }
    }

    #[test]
    fn numbers_are_the_first_ones() {
        for (output, number) in [
            ("is 71432.", Some(71432.0)),
            ("3.25, 4", Some(3.25)),
            ("none", None),
        ] {
            assert_eq!(first_number(output), number, "{output}");
        }
    }

    #[test]
    fn words_end_at_punctuation() {
        assert!(has_word("JACK: hello", "Jack") && has_word("{\"ab-c\"}", "ab-c"));
        assert!(!has_word("Jackson", "jack"));
    }

    #[test]
    fn words_count_as_often_as_in_the_reference() {
        assert_eq!(token_f1("dog dog dog", &["dog"]), 0.5);
        assert_eq!(token_f1("", &["dog"]), 0.0);
        assert_eq!(token_f1("An apple", &["pear", "apple!"]), 1.0);
    }
}
