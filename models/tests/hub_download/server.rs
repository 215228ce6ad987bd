//! A server that imitates the Hugging Face hub: the requests of a download, and faults.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

/// The content of the server, and its requests so far.
pub struct State {
    /// The only repository, `org/name`.
    pub repo: String,
    /// Its only branch.
    pub branch: String,
    /// The commit of that branch.
    pub sha: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// The token without which every answer is 401.
    pub token: Option<String>,
    /// The faults of the next downloads, each with its file.
    pub faults: Vec<(String, Fault)>,
    pub requests: Vec<Request>,
}

#[derive(Clone, Copy)]
pub enum Fault {
    /// The connection breaks after this many bytes.
    Break(usize),
    /// The answer has no length and ends after this many bytes, as behind a bad proxy.
    EndEarly(usize),
    /// The answer begins with the first byte, although another range was requested.
    IgnoreRange,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// A server on its own port, which runs until the process ends.
pub struct Hub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter();
        let files = files.map(|(name, bytes)| (name.to_string(), bytes.to_vec()));
        let state = Arc::new(Mutex::new(State {
            repo: "org/tiny".into(),
            branch: "main".into(),
            sha: "c0ffee".into(),
            files: files.collect(),
            token: None,
            faults: Vec::new(),
            requests: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that disconnects is no failure of the server.
                thread::spawn(move || drop(answer(stream, &state)));
            }
        });
        Self { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes the next download of a file fail.
    pub fn fail(&self, file: &str, fault: Fault) {
        self.state().faults.push((file.into(), fault));
    }

    /// Returns and clears the requests so far.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

/// Returns the ETag of a file.
pub fn etag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let mut request = Request {
        path,
        range: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match &*name.to_ascii_lowercase() {
            "range" => request.range = Some(value.trim().into()),
            "authorization" => request.authorization = Some(value.trim().into()),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    state.requests.push(request.clone());
    let expected = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if expected.is_some() && request.authorization != expected {
        return send(&mut stream, "401 Unauthorized", "");
    }
    let (repo, branch, sha) = (&state.repo, &state.branch, state.sha.clone());
    if request.path == format!("/api/models/{repo}/revision/{branch}") {
        let names = state.files.keys();
        let names = names.map(|name| format!(r#"{{"rfilename": "{name}"}}"#));
        let names = names.collect::<Vec<_>>().join(",");
        let body = format!(r#"{{"sha": "{sha}", "siblings": [{names}]}}"#);
        return send(&mut stream, "200 OK", &body);
    }
    let file = request
        .path
        .strip_prefix(&format!("/{repo}/resolve/{sha}/"));
    let file = file.unwrap_or_default();
    let Some(bytes) = state.files.get(file).cloned() else {
        return send(&mut stream, "404 Not Found", "");
    };
    let (from, to) = range(request.range.as_deref(), bytes.len());
    // A request for the first byte only asks for the length. Faults belong to the download.
    let download = to == bytes.len();
    let mut faults = state.faults.iter();
    let fault = faults.position(|(name, _)| download && name == file);
    let fault = fault.map(|at| state.faults.remove(at).1);
    drop(state);
    let (from, to) = match fault {
        Some(Fault::IgnoreRange) => (0, bytes.len()),
        _ => (from, to),
    };
    if from >= to {
        return send(&mut stream, "416 Range Not Satisfiable", "");
    }
    let (etag, total) = (etag(&bytes), bytes.len());
    let headers = [
        ("ETag", format!("\"{etag}\"")),
        ("x-repo-commit", sha),
        ("Content-Range", format!("bytes {from}-{}/{total}", to - 1)),
    ];
    let body = &bytes[from..to];
    let (length, sent) = match fault {
        Some(Fault::Break(count)) => (Some(body.len()), &body[..count]),
        Some(Fault::EndEarly(count)) => (None, &body[..count]),
        _ => (Some(body.len()), body),
    };
    write_head(&mut stream, "206 Partial Content", &headers, length)?;
    stream.write_all(sent)
}

/// Returns the first byte of a range, and the one after its last.
fn range(range: Option<&str>, len: usize) -> (usize, usize) {
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return (0, len);
    };
    let (from, to) = range.split_once('-').unwrap();
    let to = to.parse().map_or(len, |last: usize| (last + 1).min(len));
    (from.parse().unwrap(), to)
}

fn send(stream: &mut TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    write_head(stream, status, &[], Some(body.len()))?;
    stream.write_all(body.as_bytes())
}

fn write_head(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    length: Option<usize>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())
}
