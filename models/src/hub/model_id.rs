//! The name of a model on the hub: [`ModelId`].

use std::fmt;

use super::HubError;
use crate::checkpoint::gguf::{language_models, of_model};

/// The revision of a name without one.
const DEFAULT_REVISION: &str = "main";

/// A repository on the hub at one of its revisions, and perhaps one of its GGUF models.
///
/// All become parts of paths and addresses. They therefore only have letters, digits, `-`, `_` and
/// `.`, and `/` between parts that are not `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    repo: Box<str>,
    revision: Box<str>,
    quantization: Option<Box<str>>,
}

impl ModelId {
    /// Parses `org/name`, `name`, and both with `:quantization`, `@revision`, or one after the
    /// other. `revision` overrides one in `spec`.
    ///
    /// # Errors
    /// If `spec` or the revision is malformed.
    pub fn parse(spec: &str, revision: Option<&str>) -> Result<Self, HubError> {
        let (repo, own) = match spec.split_once('@') {
            Some((repo, own)) => (repo, Some(own)),
            None => (spec, None),
        };
        let (repo, quantization) = match repo.split_once(':') {
            Some((repo, quantization)) => (repo, Some(quantization)),
            None => (repo, None),
        };
        let revision = revision.or(own).unwrap_or(DEFAULT_REVISION);
        let is_valid = repo.split('/').count() <= 2 && repo.split('/').all(is_part);
        if !is_valid || !quantization.is_none_or(is_part) {
            return Err(HubError::InvalidId {
                expected: "a name like org/name, org/name:Q4_K_M or org/name@revision",
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
            quantization: quantization.map(Into::into),
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

    /// Returns the quantisation of one GGUF model, such as `Q4_K_M`.
    pub fn quantization(&self) -> Option<&str> {
        self.quantization.as_deref()
    }

    /// Returns the files of the model among the `names` of all GGUF files of the repository: one
    /// file, or all parts. Empty without GGUF files.
    ///
    /// # Errors
    /// If the id does not determine one model.
    pub(super) fn gguf_files<'a>(&self, names: &[&'a str]) -> Result<Vec<&'a str>, HubError> {
        let models = language_models(names);
        let chosen: Vec<_> = match self.quantization() {
            None => models.clone(),
            Some(wanted) => {
                let is_it = |name: &&&str| has_quantization(name, wanted);
                models.iter().filter(is_it).copied().collect()
            }
        };
        match *chosen {
            [only] => Ok(of_model(only, names.iter().copied())),
            [] if self.quantization.is_none() => Ok(Vec::new()),
            _ => Err(HubError::SeveralGguf {
                id: self.clone(),
                found: match models.is_empty() {
                    true => "none".into(),
                    false => models.join(", "),
                },
            }),
        }
    }
}

/// Returns whether the name of a GGUF file has the quantisation `wanted` as a word: `Q4_K` is no
/// word of `model-Q4_K_M.gguf`. The whole name counts too.
fn has_quantization(name: &str, wanted: &str) -> bool {
    let (name, wanted) = (name.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let at_border = |(at, found): (usize, &str)| {
        !name[..at].ends_with(|char: char| char.is_ascii_alphanumeric())
            && !name[at + found.len()..].starts_with(is_word)
    };
    name == wanted || name.match_indices(&wanted).any(at_border)
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(quantization) = &self.quantization {
            write!(f, ":{quantization}")?;
        }
        match &*self.revision {
            DEFAULT_REVISION => Ok(()),
            revision => write!(f, "@{revision}"),
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
    fn quantization_is_a_word_of_the_file_name() {
        let names = [
            "m-BF16.gguf",
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "m-Q8_0/m-Q8_0-00001-of-00002.gguf",
            "m-Q8_0/m-Q8_0-00002-of-00002.gguf",
            "mmproj-F16.gguf",
        ];
        let files = |spec: &str| ModelId::parse(spec, None).unwrap().gguf_files(&names);
        for (quantization, expected) in [
            ("Q4_K_M", &names[1..2]),
            ("q4_k_s", &names[2..3]),
            ("bf16", &names[..1]),
            ("Q8_0", &names[3..5]),
            ("m-BF16.gguf", &names[..1]),
        ] {
            let id = format!("org/name:{quantization}");
            assert_eq!(files(&id).unwrap(), expected, "{quantization}");
            assert_eq!(ModelId::parse(&id, None).unwrap().to_string(), id);
        }
        for quantization in ["F16", "Q4_K", "Q4", "4", "m", "Q5_0"] {
            let error = files(&format!("org/name:{quantization}")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("m-BF16.gguf, m-Q4_K_M.gguf"), "{error}");
        }
        let error = files("org/name").unwrap_err().to_string();
        assert!(error.contains("as in org/name:Q4_K_M, found"), "{error}");
        let id = ModelId::parse("org/name", None).unwrap();
        assert_eq!(id.gguf_files(&names[4..]).unwrap(), &names[4..5]);
        assert!(id.gguf_files(&names[5..]).unwrap().is_empty());
        let id = ModelId::parse("org/name:Q8_0@v1", None).unwrap();
        assert_eq!((id.quantization(), id.revision()), (Some("Q8_0"), "v1"));
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
            "org/name:",
            "org/name:a/b",
            "org/name:a:b",
            "org/name@v1:Q8_0",
        ] {
            assert!(ModelId::parse(spec, None).is_err(), "{spec}");
        }
        assert!(ModelId::parse("org/name", Some("..")).is_err());
    }
}
