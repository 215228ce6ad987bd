//! The rendered part of a hand-written page, between two markers.

use anyhow::{Result, bail};

const BEGIN: &str = "<!-- benchmarks -->";
const END: &str = "<!-- /benchmarks -->";

/// A page without hand-written text.
pub fn empty_page(title: &str) -> String {
    format!("# {title}\n\n{BEGIN}\n{END}\n")
}

/// Replaces the part of the page between the markers.
///
/// # Errors
/// If the page does not have each marker once, in order.
pub fn fill(page: &str, contents: &str) -> Result<String> {
    let begins: Vec<_> = page.match_indices(BEGIN).collect();
    let ends: Vec<_> = page.match_indices(END).collect();
    let (&[(begin, _)], &[(end, _)]) = (&begins[..], &ends[..]) else {
        bail!(
            "expected one line {BEGIN} and one line {END}, found {} and {}",
            begins.len(),
            ends.len()
        );
    };
    if end < begin {
        bail!("expected {BEGIN} before {END}, found the reverse order");
    }
    let (before, after) = (&page[..begin + BEGIN.len()], &page[end..]);
    Ok(format!("{before}\n{}\n{after}", contents.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_part_is_replaced() {
        let page = format!("a\n\n{BEGIN}\nold\n{END}\n\nb\n");
        let new = fill(&page, "new\n").unwrap();
        assert_eq!(new, format!("a\n\n{BEGIN}\nnew\n{END}\n\nb\n"));
        assert_eq!(fill(&new, "new\n").unwrap(), new);
    }

    #[test]
    fn markers_missing_are_named() {
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
