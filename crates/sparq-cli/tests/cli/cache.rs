use std::fs;

use serde_json::{Value, json};

use crate::support::sparq;

fn cache(arguments: &[&str], variable: &str, folder: &std::path::Path) -> Value {
    let mut command = sparq();
    let run = command
        .arg("cache")
        .args(arguments)
        .arg("--json")
        .env(variable, folder);
    let output = run.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

#[test]
fn cache_is_shown_and_cleared_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let empty = cache(&[], "SPARQ_CACHE_DIR", path);
    assert_eq!(
        empty,
        json!({ "folder": path, "cleared": false, "kinds": [] })
    );

    let namespace = path.join("kernels/default.db/00");
    fs::create_dir_all(&namespace).unwrap();
    fs::write(namespace.join("namespace"), "cuda/sm_90").unwrap();
    fs::write(namespace.join("entry"), [0; 100]).unwrap();
    fs::write(path.join("own.txt"), "kept").unwrap();
    let kinds = json!([{ "name": "cuda/sm_90", "files": 1, "bytes": 100 }]);
    assert_eq!(cache(&[], "SPARQ_CACHE_DIR", path)["kinds"], kinds);
    let cleared = cache(&["--clear"], "SPARQ_CACHE_DIR", path);
    assert_eq!(
        (&cleared["kinds"], &cleared["cleared"]),
        (&kinds, &json!(true))
    );
    assert_eq!(cache(&[], "SPARQ_CACHE_DIR", path)["kinds"], json!([]));
    assert_eq!(fs::read_to_string(path.join("own.txt")).unwrap(), "kept");
}

#[test]
fn cache_folder_follows_the_variables() {
    let folder = tempfile::tempdir().unwrap();
    let shown = cache(&[], "XDG_CACHE_HOME", folder.path());
    assert_eq!(shown["folder"], json!(folder.path().join("sparq")));
}
