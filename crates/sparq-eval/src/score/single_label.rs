//! Single label, the score of BABILong: whether an answer names the target and no other label.

/// Returns whether the first sentence of `output` names the target and no other of the labels that
/// do not occur in the question.
///
/// ```
/// use sparq_eval::score::single_label;
///
/// let rooms = ["kitchen", "garden", "office"];
/// assert!(single_label("In the garden. Not the office", "garden", &rooms));
/// assert!(!single_label("the garden or the office", "garden", &rooms));
/// ```
pub fn single_label<S: AsRef<str>>(output: &str, target: &str, labels: &[S]) -> bool {
    let output = output.to_lowercase();
    let sentence = output.split('.').next().unwrap_or_default();
    let sentence = ["<context>", "<example>", "question"]
        .iter()
        .fold(sentence, |text, mark| {
            text.split(mark).next().unwrap_or(text)
        });
    let mut named = labels.iter().map(|label| label.as_ref().to_lowercase());
    let target = target.to_lowercase();
    sentence.contains(&target) && named.all(|label| label == target || !sentence.contains(&label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_sentence_counts() {
        let labels = ["Bill", "Fred", "milk"];
        for (output, right) in [
            (" bill", true),
            (" Bill gave it to Fred.", false),
            ("fred", false),
            (" Bill\nQuestion: Is it Fred?", true),
            ("", false),
        ] {
            assert_eq!(single_label(output, "Bill", &labels), right, "{output}");
        }
    }
}
