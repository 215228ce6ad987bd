//! A connection: [`Connection`] reads requests and writes responses.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::message::{HttpRequest, HttpResponse, phrase};
use crate::api::ApiError;

/// The most bytes of a request before its body.
const MOST_HEAD: usize = 32 << 10;
/// The most headers.
const MOST_HEADERS: usize = 100;
/// The time for the head of a request, from its first byte.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The time for a body.
const BODY_TIME: Duration = Duration::from_secs(60);
/// The time that a client may take to accept bytes.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// The time that a connection waits for its next request.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// The time between two looks at whether the server stops.
const LOOK: Duration = Duration::from_millis(100);

/// A connection of a client.
pub(super) struct Connection {
    stream: TcpStream,
    /// The bytes read and not used.
    buffer: Vec<u8>,
    most_body: usize,
}

/// The end of a connection.
#[derive(Debug)]
pub(super) enum Closed {
    /// The client has left, or the connection is idle.
    Quietly,
    /// The request is wrong. The connection ends with this error.
    Refused(ApiError),
}

impl From<io::Error> for Closed {
    fn from(_: io::Error) -> Self {
        Self::Quietly
    }
}

fn refused(status: u16, message: impl Into<String>) -> Closed {
    Closed::Refused(ApiError::new(status, None, message))
}

/// The headers that a server needs.
struct Head {
    request: HttpRequest,
    body: Body,
    /// Whether the client waits for permission to send its body.
    expects_continue: bool,
}

enum Body {
    Length(usize),
    Chunks,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, most_body: usize) -> io::Result<Self> {
        // A connection of a listener that does not block may not block either, on some systems.
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIME))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            most_body,
        })
    }

    /// Reads the next request. `stops` tells whether the server stops, which ends the wait for it.
    pub(super) fn read(&mut self, stops: impl Fn() -> bool) -> Result<HttpRequest, Closed> {
        let idle = Instant::now() + IDLE_TIME;
        while self.buffer.is_empty() {
            if stops() || Instant::now() > idle {
                return Err(Closed::Quietly);
            }
            self.fill(Instant::now() + LOOK)
                .or_else(|error| match is_timeout(&error) {
                    true => Ok(()),
                    false => Err(error),
                })?;
        }
        let head = self.head()?;
        let Head {
            mut request,
            body,
            expects_continue,
        } = head;
        if let Body::Length(length) = body
            && length > self.most_body
        {
            return Err(self.too_large(length));
        }
        if expects_continue {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let deadline = Instant::now() + BODY_TIME;
        request.body = match body {
            Body::Length(length) => self.take(length, deadline)?,
            Body::Chunks => self.chunks(deadline)?,
        };
        Ok(request)
    }

    fn too_large(&self, found: usize) -> Closed {
        let most = self.most_body;
        refused(
            413,
            format!("body: expected at most {most} bytes, found {found}"),
        )
    }

    /// Reads more bytes.
    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads more bytes of a request that has begun.
    fn fill_request(&mut self, deadline: Instant, part: &str) -> Result<(), Closed> {
        self.fill(deadline)
            .map_err(|error| match is_timeout(&error) {
                true => refused(
                    408,
                    format!("{part}: expected in time, found only a part of it"),
                ),
                false => Closed::Quietly,
            })
    }

    /// Reads the request line and the headers.
    fn head(&mut self) -> Result<Head, Closed> {
        let deadline = Instant::now() + HEAD_TIME;
        loop {
            if let Some((length, head)) = parse_head(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(head);
            }
            if self.buffer.len() > MOST_HEAD {
                let message = format!("headers: expected at most {MOST_HEAD} bytes, found more");
                return Err(refused(431, message));
            }
            self.fill_request(deadline, "headers")?;
        }
    }

    /// Takes `length` bytes.
    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, Closed> {
        while self.buffer.len() < length {
            self.fill_request(deadline, "body")?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Takes a line of a body in chunks, without its end.
    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>, Closed> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let mut line = self.take(end + 2, deadline)?;
                line.truncate(end);
                return Ok(line);
            }
            if self.buffer.len() > MOST_HEAD {
                return Err(refused(
                    400,
                    "body: expected the size of a chunk, found a long line",
                ));
            }
            self.fill_request(deadline, "body")?;
        }
    }

    /// Takes a body in chunks.
    fn chunks(&mut self, deadline: Instant) -> Result<Vec<u8>, Closed> {
        let mut body = Vec::new();
        loop {
            let line = self.line(deadline)?;
            let size = chunk_size(&line).ok_or_else(|| {
                let found = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
                let expected = "body: expected the size of a chunk in hexadecimal digits";
                refused(400, format!("{expected}, found {found:?}"))
            })?;
            if size > self.most_body - body.len() {
                return Err(self.too_large(body.len().saturating_add(size)));
            }
            if size == 0 {
                // Headers may follow.
                while !self.line(deadline)?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size, deadline)?);
            if !self.line(deadline)?.is_empty() {
                return Err(refused(
                    400,
                    "body: expected the end of a chunk, found more bytes",
                ));
            }
        }
    }

    /// Writes a response.
    pub(super) fn write(
        &mut self,
        response: &HttpResponse,
        has_body: bool,
        keep_alive: bool,
    ) -> io::Result<()> {
        let mut bytes = self.begin(response, keep_alive);
        bytes += &format!("content-length: {}\r\n\r\n", response.body.len());
        let mut bytes = bytes.into_bytes();
        if has_body {
            bytes.extend_from_slice(&response.body);
        }
        self.stream.write_all(&bytes)
    }

    /// Returns the status line and headers, without the empty line that ends them.
    fn begin(&self, response: &HttpResponse, keep_alive: bool) -> String {
        let HttpResponse {
            status,
            content_type,
            headers,
            ..
        } = response;
        let phrase = phrase(*status);
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut head = format!(
            "HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\n\
             connection: {connection}\r\ncache-control: no-store\r\n\
             x-content-type-options: nosniff\r\n"
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head
    }

    /// Begins a stream of events, in chunks or until the connection ends.
    pub(super) fn begin_events(&mut self, in_chunks: bool, keep_alive: bool) -> io::Result<()> {
        let response = HttpResponse::new("text/event-stream", []);
        let mut head = self.begin(&response, keep_alive);
        if in_chunks {
            head += "transfer-encoding: chunked\r\n";
        }
        head += "\r\n";
        self.stream.write_all(head.as_bytes())
    }

    /// Writes an event.
    pub(super) fn write_event(&mut self, data: &str, in_chunks: bool) -> io::Result<()> {
        let event = format!("data: {data}\n\n");
        match in_chunks {
            true => {
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                self.stream.write_all(chunk.as_bytes())
            }
            false => self.stream.write_all(event.as_bytes()),
        }
    }

    /// Ends a stream of events.
    pub(super) fn end_events(&mut self, in_chunks: bool) -> io::Result<()> {
        match in_chunks {
            true => self.stream.write_all(b"0\r\n\r\n"),
            false => Ok(()),
        }
    }

    /// Returns whether the client has closed the connection.
    pub(super) fn has_left(&self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return true;
        }
        let left = match self.stream.peek(&mut [0]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !is_timeout(&error) && error.kind() != ErrorKind::Interrupted,
        };
        self.stream.set_nonblocking(false).is_err() || left
    }

    /// Ends the connection after a response to a request that was not read to its end.
    ///
    /// Closing with unread bytes would reset the connection, and the client might lose the
    /// response: reads on for a moment.
    pub(super) fn linger(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut read = 0;
        while read < 8 * self.most_body {
            self.buffer.clear();
            if self.fill(deadline).is_err() {
                return;
            }
            read += self.buffer.len();
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Parses the size of a chunk. An extension may follow it.
fn chunk_size(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line).ok()?;
    let digits = line.split(';').next()?.trim();
    // `from_str_radix` would allow a sign.
    let is_hex = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| usize::from_str_radix(digits, 16).ok())?
}

/// Parses a request line and headers. Returns `None` if some are missing, else their length too.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head)>, Closed> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let message = format!("headers: expected at most {MOST_HEADERS}, found more");
            return Err(refused(431, message));
        }
        Err(httparse::Error::Version) => {
            let message = "expected a request of HTTP/1.1 or HTTP/1.0, found another version";
            return Err(refused(505, message));
        }
        Err(error) => {
            return Err(refused(
                400,
                format!("expected a request of HTTP/1.1: {error}"),
            ));
        }
    };
    let is_new = parsed.version == Some(1);
    let target = parsed.path.unwrap_or("/");
    let path = target.split(['?', '#']).next().unwrap_or("/");
    let mut head = Head {
        request: HttpRequest {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            authorization: None,
            body: Vec::new(),
            takes_chunks: is_new,
            keep_alive: is_new,
        },
        body: Body::Length(0),
        expects_continue: false,
    };
    let mut lengths: Option<usize> = None;
    let mut in_chunks = false;
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let value = value.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let length = value.parse().ok().filter(|_| digits);
                let length = length.filter(|&length| lengths.is_none_or(|other| other == length));
                lengths = Some(length.ok_or_else(|| {
                    refused(
                        400,
                        format!("content-length: expected one number, found {value:?}"),
                    )
                })?);
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !in_chunks => {
                in_chunks = true;
            }
            "transfer-encoding" => {
                let message = format!("transfer-encoding: expected chunked, found {value:?}");
                return Err(refused(501, message));
            }
            "expect" => head.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            "connection" => {
                for option in value.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        head.request.keep_alive = false;
                    }
                }
            }
            "authorization" => head.request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    head.body = match (lengths, in_chunks) {
        (Some(_), true) => {
            let message = "expected content-length or transfer-encoding, found both";
            return Err(refused(400, message));
        }
        (Some(length), false) => Body::Length(length),
        (None, true) => Body::Chunks,
        (None, false) => Body::Length(0),
    };
    Ok(Some((length, head)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> u16 {
        match parse_head(head.as_bytes()) {
            Err(Closed::Refused(error)) => error.status,
            Err(Closed::Quietly) => 0,
            Ok(found) => {
                if found.is_some() {
                    200
                } else {
                    100
                }
            }
        }
    }

    #[test]
    fn ambiguous_lengths_are_refused() {
        let with = |headers: &str| status(&format!("POST / HTTP/1.1\r\n{headers}\r\n"));
        assert_eq!(with("content-length: 3\r\n"), 200);
        assert_eq!(with("content-length: 3\r\ncontent-length: 3\r\n"), 200);
        assert_eq!(with("content-length: 3\r\ncontent-length: 4\r\n"), 400);
        assert_eq!(
            with("content-length: 3\r\ntransfer-encoding: chunked\r\n"),
            400
        );
        assert_eq!(with("transfer-encoding: gzip, chunked\r\n"), 501);
        assert_eq!(
            with("transfer-encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            501
        );
        for length in ["+3", "-1", "3, 3", "0x3", "", "99999999999999999999999"] {
            assert_eq!(
                with(&format!("content-length: {length}\r\n")),
                400,
                "{length}"
            );
        }
    }

    #[test]
    fn head_may_be_incomplete_or_wrong() {
        assert_eq!(status("POST / HTTP/1.1\r\ncontent-le"), 100);
        assert_eq!(status("POST / HTTP/2.0\r\n\r\n"), 505);
        assert_eq!(status("\u{1}\u{2}\u{3} / HTTP/1.1\r\n\r\n"), 400);
        let many = "a: b\r\n".repeat(MOST_HEADERS + 1);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{many}\r\n")), 431);
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        assert_eq!(chunk_size(b"1f"), Some(31));
        assert_eq!(chunk_size(b"a;name=value"), Some(10));
        for wrong in ["", "+1", "-1", "0x1", "g", "fffffffffffffffff"] {
            assert_eq!(chunk_size(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
