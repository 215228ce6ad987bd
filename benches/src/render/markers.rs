//! The part of a hand-written page that is rendered.

use anyhow::{Result, bail};

const BEGIN: &str = "<!-- benchmarks -->";
const END: &str = "<!-- /benchmarks -->";

/// The page with `contents` between the two lines that mark their place.
pub fn fill(page: &str, contents: &str) -> Result<String> {
    let places: Vec<_> = page.match_indices(BEGIN).collect();
    let ends: Vec<_> = page.match_indices(END).collect();
    let (&[(begin, _)], &[(end, _)]) = (&places[..], &ends[..]) else {
        bail!(
            "expected one line {BEGIN} and one line {END}, found {} and {}",
            places.len(),
            ends.len()
        );
    };
    if end < begin {
        bail!("expected {BEGIN} before {END}, found them the other way round");
    }
    let (before, after) = (&page[..begin + BEGIN.len()], &page[end..]);
    Ok(format!("{before}\n{}\n{after}", contents.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_lines_is_replaced() {
        let page = format!("a\n\n{BEGIN}\nold\n{END}\n\nb\n");
        let new = fill(&page, "new\n").unwrap();
        assert_eq!(new, format!("a\n\n{BEGIN}\nnew\n{END}\n\nb\n"));
        assert_eq!(fill(&new, "new\n").unwrap(), new);
    }

    #[test]
    fn a_page_without_the_lines_says_which() {
        for page in [
            "",
            "<!-- benchmarks -->",
            "<!-- /benchmarks --><!-- benchmarks -->",
        ] {
            let error = fill(page, "x").unwrap_err().to_string();
            assert!(error.contains(BEGIN) && error.contains(END), "{error}");
        }
    }
}
