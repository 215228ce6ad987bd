//! The settings of the hub and its cache: [`HubOptions`].

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use super::HubError;

/// The settings of the hub, its cache and its user.
#[derive(Clone)]
pub struct HubOptions {
    /// The cache: the folder with `models--org--name`.
    pub cache_dir: PathBuf,
    /// The address of the hub.
    pub endpoint: String,
    /// The token for private and gated models.
    pub token: Option<String>,
    /// Whether network access is forbidden.
    pub offline: bool,
    /// The number of retries after a broken connection. A file resumes where it stopped.
    pub retries: usize,
}

impl HubOptions {
    /// Creates options for a cache in `cache_dir`: the public hub, no token, two retries.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            endpoint: "https://huggingface.co".into(),
            token: None,
            offline: false,
            retries: 2,
        }
    }

    /// Reads the options from the environment:
    ///
    /// - `HF_HOME` is `huggingface` in `XDG_CACHE_HOME` or in `~/.cache` if it is not set;
    /// - the cache is `HF_HUB_CACHE`, else the older `HUGGINGFACE_HUB_CACHE`, else `hub` in
    ///   `HF_HOME`;
    /// - the hub is `HF_ENDPOINT`, else <https://huggingface.co>;
    /// - the token is `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `token` in `HF_HOME`, which
    ///   the hub's login command writes;
    /// - `HF_HUB_OFFLINE` set to 1, true, yes or on forbids network access.
    ///
    /// Paths may begin with `~` and have variables, as `$NAME` or `${NAME}`.
    ///
    /// # Errors
    /// If neither the environment nor a home folder determines the cache.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| env::var(name).ok(), env::home_dir())
    }

    fn from_lookup(
        variable: impl Fn(&str) -> Option<String>,
        home: Option<PathBuf>,
    ) -> Result<Self, HubError> {
        // An empty variable counts as not set.
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path =
            |name: &str| variable(name).map(|path| expand(&path, home.as_deref(), &variable));
        let caches = path("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")));
        let hub_home = path("HF_HOME").or_else(|| Some(caches?.join("huggingface")));
        let in_hub_home = |name: &str| hub_home.as_ref().map(|home| home.join(name));
        let cache_dir = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| in_hub_home("hub"))
            .ok_or(HubError::NoCache)?;
        let token_file = || {
            let file = path("HF_TOKEN_PATH").or_else(|| in_hub_home("token"))?;
            let token = std::fs::read_to_string(file).ok()?;
            Some(token.trim().to_string()).filter(|token| !token.is_empty())
        };
        let mut options = Self::new(cache_dir);
        options.token = variable("HF_TOKEN")
            .map(|token| token.trim().to_string())
            .or_else(token_file);
        options.offline = variable("HF_HUB_OFFLINE").is_some_and(|value| {
            let value = value.trim().to_ascii_lowercase();
            ["1", "true", "yes", "on"].contains(&&*value)
        });
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            options.endpoint = endpoint.trim().trim_end_matches('/').into();
        }
        Ok(options)
    }
}

/// Returns a path with the home folder in place of a leading `~`, and with the values of variables.
/// An unknown variable stays as it is written.
fn expand(path: &str, home: Option<&Path>, variable: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let (begin, mut rest) = match (path.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            (home.to_string_lossy().into_owned(), rest)
        }
        _ => (String::new(), path),
    };
    let mut expanded = begin;
    while let Some((before, name)) = rest.split_once('$') {
        expanded.push_str(before);
        let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let braced = name.strip_prefix('{').and_then(|name| name.split_once('}'));
        let plain = || name.split_at(name.find(|char| !is_part(char)).unwrap_or(name.len()));
        let (name, next) = braced.unwrap_or_else(plain);
        match variable(name) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&rest[before.len()..rest.len() - next.len()]),
        }
        rest = next;
    }
    expanded.push_str(rest);
    expanded.into()
}

impl fmt::Debug for HubOptions {
    /// Leaves the token out, since options may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("retries", &self.retries)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn options(variables: &[(&str, &str)], home: Option<&str>) -> Result<HubOptions, HubError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        HubOptions::from_lookup(
            |name| find(name).map(|(_, value)| value.to_string()),
            home.map(PathBuf::from),
        )
    }

    #[test]
    fn cache_folder_is_that_of_the_hub_tools() {
        let cache = |variables: &[_]| options(variables, Some("/home/me")).unwrap().cache_dir;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/data/hf")]), Path::new("/data/hf/hub"));
        assert_eq!(
            cache(&[("HF_HOME", "/data/hf"), ("HF_HUB_CACHE", "/fast")]),
            Path::new("/fast")
        );
        assert_eq!(
            cache(&[("HF_HOME", "")]),
            Path::new("/home/me/.cache/huggingface/hub")
        );
        let xdg = ("XDG_CACHE_HOME", "/cache");
        assert_eq!(cache(&[xdg]), Path::new("/cache/huggingface/hub"));
        assert_eq!(
            cache(&[xdg, ("HF_HOME", "/data/hf")]),
            Path::new("/data/hf/hub")
        );
        let older = ("HUGGINGFACE_HUB_CACHE", "/older");
        assert_eq!(
            cache(&[older, ("HF_HOME", "/data/hf")]),
            Path::new("/older")
        );
        assert_eq!(
            cache(&[older, ("HF_HUB_CACHE", "/fast")]),
            Path::new("/fast")
        );
        let without_home = options(&[xdg], None).unwrap();
        assert_eq!(without_home.cache_dir, Path::new("/cache/huggingface/hub"));
        assert!(matches!(options(&[], None), Err(HubError::NoCache)));
    }

    #[test]
    fn paths_may_have_a_home_and_variables() {
        let cache = |path| {
            let variables = [("HF_HUB_CACHE", path), ("USER", "me"), ("disk_1", "/fast")];
            options(&variables, Some("/home/me")).unwrap().cache_dir
        };
        for (path, expected) in [
            ("~", "/home/me"),
            ("~/hf", "/home/me/hf"),
            ("~other/hf", "~other/hf"),
            ("/a/~", "/a/~"),
            ("$disk_1/$USER", "/fast/me"),
            ("${disk_1}x/$NONE/${NONE}/$", "/fastx/$NONE/${NONE}/$"),
        ] {
            assert_eq!(cache(path), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn token_comes_from_variable_or_file_and_stays_secret() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_from_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        let options = |more: &[(&'static str, &'static str)]| {
            let mut variables = vec![("HF_HOME", home), ("HF_HUB_CACHE", "/elsewhere")];
            variables.extend(more);
            options(&variables, None).unwrap()
        };
        assert_eq!(options(&[]).token.as_deref(), Some("hf_from_file"));
        let token = options(&[("HF_TOKEN", " hf_secret\n")]);
        assert_eq!(token.token.as_deref(), Some("hf_secret"));
        assert!(!format!("{token:?}").contains("hf_secret"));
    }

    #[test]
    fn environment_sets_endpoint_and_offline_mode() {
        let of = |variables: &[_]| options(variables, Some("/home/me")).unwrap();
        assert_eq!(of(&[]).endpoint, "https://huggingface.co");
        assert_eq!(
            of(&[("HF_ENDPOINT", "http://mirror/")]).endpoint,
            "http://mirror"
        );
        for (value, offline) in [("1", true), ("TRUE", true), ("0", false), ("no", false)] {
            assert_eq!(of(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(!of(&[]).offline);
    }
}
