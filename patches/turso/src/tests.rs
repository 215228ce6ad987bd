use super::transaction::TransactionBehavior;
use super::*;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const INSERT: &str = "INSERT INTO entries (namespace, key, value, origin) VALUES (?1, ?2, ?3, ?4) \
    ON CONFLICT(namespace, key) DO UPDATE SET value = excluded.value, origin = excluded.origin \
    WHERE entries.origin = 1 AND excluded.origin = 0";
const SELECT: &str = "SELECT value FROM entries WHERE namespace = ?1 AND key = ?2";
const SCAN: &str = "SELECT key, value, origin FROM entries WHERE namespace = ?1";

/// Runs a future of this crate, none of which ever waits.
fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future waits"),
    }
}

fn open(path: &Path) -> Connection {
    let path = path.to_str().expect("a path in UTF-8");
    run(Builder::new_local(path).build())
        .unwrap()
        .connect()
        .unwrap()
}

fn insert(connection: &Connection, key: &[u8], value: &[u8], origin: i64) -> u64 {
    run(connection.execute(INSERT, ("kernels", key.to_vec(), value.to_vec(), origin))).unwrap()
}

fn get(connection: &Connection, key: &[u8]) -> Option<Vec<u8>> {
    let mut rows = run(connection.query(SELECT, ("kernels", key.to_vec()))).unwrap();
    run(rows.next()).unwrap().map(|row| row.get(0).unwrap())
}

/// Returns the files of entries.
fn files(path: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for folder in fs::read_dir(path).unwrap().flatten() {
        if folder.file_name() != "meta" {
            let files = fs::read_dir(folder.path()).unwrap().flatten();
            found.extend(
                files
                    .map(|file| file.path())
                    .filter(|path| !path.ends_with("namespace")),
            );
        }
    }
    found
}

#[test]
fn first_insert_wins_and_local_replaces_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (open(folder.path()), open(folder.path()));
    assert_eq!(insert(&first, b"a", b"imported", 1), 1);
    assert_eq!(insert(&second, b"a", b"other", 1), 0);
    assert_eq!(insert(&second, b"a", b"local", 0), 1);
    assert_eq!(insert(&first, b"a", b"late", 0), 0);
    assert_eq!(get(&first, b"a").unwrap(), b"local");
    assert_eq!(get(&first, b"b"), None);
}

#[test]
fn damaged_entry_is_a_miss_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let connection = open(folder.path());
    insert(&connection, b"a", &[7; 1000], 0);
    let file = files(folder.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    for at in [0, 9, 20, 30, 32, 500, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&file, damaged).unwrap();
        assert_eq!(get(&connection, b"a"), None, "byte {at}");
    }
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(get(&connection, b"a"), None);
    assert_eq!(insert(&connection, b"a", b"again", 0), 1);
    assert_eq!(get(&connection, b"a").unwrap(), b"again");
}

#[test]
fn summary_scan_purge_and_drop() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = open(folder.path());
    insert(&connection, b"a", b"1", 0);
    insert(&connection, b"b", b"22", 1);
    let summary = "SELECT namespace, COUNT(*), SUM(length(key) + length(value)) FROM entries \
                   GROUP BY namespace ORDER BY namespace";
    let mut rows = run(connection.query(summary, ())).unwrap();
    let row = run(rows.next()).unwrap().unwrap();
    assert_eq!(row.get::<String>(0).unwrap(), "kernels");
    assert_eq!(row.get::<i64>(1).unwrap(), 2);
    assert!(row.get::<String>(1).is_err());

    let mut rows = run(connection.query(SCAN, ("kernels",))).unwrap();
    let mut found = Vec::new();
    while let Some(row) = run(rows.next()).unwrap() {
        found.push((row.get::<Vec<u8>>(0).unwrap(), row.get::<i64>(2).unwrap()));
    }
    found.sort();
    assert_eq!(found, [(b"a".to_vec(), 0), (b"b".to_vec(), 1)]);

    let purge = "DELETE FROM entries WHERE namespace = ?1 AND key = ?2";
    assert_eq!(
        run(connection.execute(purge, ("kernels", b"a".to_vec()))).unwrap(),
        1
    );
    assert_eq!(
        run(connection.execute(purge, ("kernels", b"a".to_vec()))).unwrap(),
        0
    );
    let behavior = TransactionBehavior::Immediate;
    let transaction = run(connection.transaction_with_behavior(behavior)).unwrap();
    assert_eq!(
        run(transaction.execute("DROP TABLE IF EXISTS entries", ())).unwrap(),
        1
    );
    run(transaction.commit()).unwrap();
    assert_eq!(get(&connection, b"b"), None);
    assert!(run(connection.execute("VACUUM", ())).is_err());
}

#[test]
fn size_is_bounded_by_last_use() {
    let path = tempfile::tempdir().unwrap();
    let connection = open(path.path());
    for key in 0..10u8 {
        insert(&connection, &[key], &[key; 1000], 0);
    }
    // Entry 3 was used last, long after the others.
    let old = std::time::SystemTime::now() - Duration::from_secs(100 * 3600);
    for file in files(path.path()) {
        fs::File::options()
            .append(true)
            .open(file)
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    assert!(get(&connection, &[3]).is_some());
    Folder::open(path.path().into(), false).unwrap().bound(2500);
    assert!(get(&connection, &[3]).is_some());
    assert!(files(path.path()).len() <= 2);
}

#[test]
fn many_writers_leave_whole_entries() {
    let path = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let path = path.path();
            scope.spawn(move || {
                let connection = open(path);
                for key in 0..50u8 {
                    insert(&connection, &[key], &vec![thread; 5000], 0);
                    let value = get(&connection, &[key]).expect("an entry that was just written");
                    assert!(value.len() == 5000 && value.iter().all(|&byte| byte == value[0]));
                }
            });
        }
    });
    assert_eq!(files(path.path()).len(), 50);
}

#[test]
fn read_only_database_is_not_changed() {
    let path = tempfile::tempdir().unwrap();
    let missing = path.path().join("missing");
    let read_only = |path: &Path| {
        let path = path.to_str().expect("a path in UTF-8");
        run(Builder::new_local(path).read_only(true).build())
    };
    assert!(read_only(&missing).is_err());
    assert!(!missing.exists());
    insert(&open(path.path()), b"a", b"1", 0);
    let connection = read_only(path.path()).unwrap().connect().unwrap();
    assert_eq!(get(&connection, b"a").unwrap(), b"1");
    let values = ("kernels", b"b".to_vec(), b"2".to_vec(), 0);
    assert!(run(connection.execute(INSERT, values)).is_err());
}
