//! The name of a model on the hub: [`ModelId`].

use std::fmt;

use super::HubError;

/// The revision of a name without one.
const DEFAULT_REVISION: &str = "main";

/// A repository on the hub at one of its revisions.
///
/// Both become parts of paths and addresses. They therefore only have letters, digits, `-`, `_` and
/// `.`, and `/` between parts that are not `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    repo: String,
    revision: String,
}

impl ModelId {
    /// Parses `org/name`, `name`, `org/name@revision` or `name@revision`. `revision` overrides one
    /// in `spec`.
    ///
    /// # Errors
    /// If `spec` or the revision is malformed.
    pub fn parse(spec: &str, revision: Option<&str>) -> Result<Self, HubError> {
        let (repo, own) = match spec.split_once('@') {
            Some((repo, own)) => (repo, Some(own)),
            None => (spec, None),
        };
        let revision = revision.or(own).unwrap_or(DEFAULT_REVISION);
        if repo.split('/').count() > 2 || !repo.split('/').all(is_part) {
            return Err(HubError::InvalidId {
                expected: "a name like org/name or org/name@revision",
                found: spec.into(),
            });
        }
        if !revision.split('/').all(is_part) {
            return Err(HubError::InvalidId {
                expected: "a revision (a branch, a tag or a commit)",
                found: revision.into(),
            });
        }
        Ok(Self {
            repo: repo.into(),
            revision: revision.into(),
        })
    }

    /// Returns `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Returns the branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.revision {
            DEFAULT_REVISION => f.write_str(&self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

/// Returns whether `part` is allowed between the slashes of an id or a revision.
pub(super) fn is_part(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_has_a_repository_and_a_revision() {
        let parse = |spec, revision| ModelId::parse(spec, revision).unwrap();
        let id = parse("org/Name-1.5_b@refs/pr/7", None);
        assert_eq!((id.repo(), id.revision()), ("org/Name-1.5_b", "refs/pr/7"));
        assert_eq!(parse("gpt2", None).revision(), "main");
        assert_eq!(parse("org/name@v1", Some("v2")).revision(), "v2");
        assert_eq!(parse("org/name@v1", None).to_string(), "org/name@v1");
        assert_eq!(parse("org/name", None).to_string(), "org/name");
    }

    #[test]
    fn id_cannot_leave_the_cache() {
        for spec in [
            "",
            "/",
            "/abs",
            "./model",
            "../model",
            "org/..",
            "a/b/c",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org name",
            r"org\name",
            "org/näme",
            "org/name?x",
            "org/name@a@b",
            "~/model",
        ] {
            assert!(ModelId::parse(spec, None).is_err(), "{spec}");
        }
        assert!(ModelId::parse("org/name", Some("..")).is_err());
    }
}
