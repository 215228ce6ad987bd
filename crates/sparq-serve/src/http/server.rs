//! The listener and its connections: [`Server`].

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sparq::Method;
use sparq_models::text::ChatTemplate;

use super::ApiKeys;
use super::connection::{Closed, Connection};
use super::message::HttpResponse;
use crate::api::ApiError;
use crate::engine::Engine;
use crate::metrics::Metrics;

/// The settings of a [`Server`].
#[derive(Clone)]
pub struct ServerConfig {
    /// The keys of clients.
    pub keys: ApiKeys,
    /// The most bytes of the body of a request.
    pub max_body: usize,
    /// The most connections at a time.
    pub max_connections: usize,
    /// The time for which a server that stops waits for running requests.
    pub grace: Duration,
}

impl Default for ServerConfig {
    /// No keys, 16 MiB, 1024 connections, 30 seconds.
    fn default() -> Self {
        Self {
            keys: ApiKeys::default(),
            max_body: 16 << 20,
            max_connections: 1024,
            grace: Duration::from_secs(30),
        }
    }
}

/// The model as the server shows it.
pub struct ServerModel {
    /// The name in requests and responses.
    pub name: String,
    /// The template of conversations. Without one, their texts are joined by empty lines.
    pub template: Option<ChatTemplate>,
    /// The methods that a request may name. The first is the default.
    pub methods: Vec<(String, Method)>,
}

/// The part that all connections share.
pub(super) struct State {
    pub(super) engine: Engine,
    pub(super) model: ServerModel,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: ServerConfig,
    /// When the server began, in seconds since 1970.
    pub(super) created: u64,
    requests: AtomicU64,
    connections: AtomicUsize,
    stopping: AtomicBool,
}

impl State {
    /// Returns a name for a response that no other response of this server has.
    pub(super) fn next_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:x}-{number:08x}", self.created)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// Returns the seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<State>,
}

/// Stops a [`Server`] from another thread.
#[derive(Clone)]
pub struct ServerHandle {
    address: SocketAddr,
    state: Arc<State>,
}

impl ServerHandle {
    /// Stops the server: no new connections and requests. [`Server::run`] returns when the running
    /// ones have ended.
    pub fn stop(&self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        self.state.engine.stop();
        // The listener waits for a connection.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.is_ipv4() {
                true => std::net::Ipv4Addr::LOCALHOST.into(),
                false => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
    }
}

impl Server {
    /// Binds to an address.
    ///
    /// # Errors
    /// If the address cannot be bound.
    ///
    /// # Panics
    /// If the model has no method.
    pub fn bind(
        address: SocketAddr,
        engine: Engine,
        metrics: Arc<Metrics>,
        model: ServerModel,
        config: ServerConfig,
    ) -> io::Result<Self> {
        assert!(!model.methods.is_empty(), "expected a method, found none");
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            state: Arc::new(State {
                engine,
                model,
                metrics,
                config,
                created: now(),
                requests: AtomicU64::new(0),
                connections: AtomicUsize::new(0),
                stopping: AtomicBool::new(false),
            }),
        })
    }

    /// Returns the address, with the port that the system chose if it was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle to stop it.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            address: self.address,
            state: Arc::clone(&self.state),
        }
    }

    /// Serves connections until a handle stops the server. Then waits for running requests, up to
    /// the time of the configuration. Returns whether all of them ended.
    pub fn run(self) -> bool {
        for stream in self.listener.incoming() {
            if self.state.is_stopping() {
                break;
            }
            match stream {
                Ok(stream) => accept(&self.state, stream),
                // Too many open files, for one. Others may be closed meanwhile.
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        drop(self.listener);
        let deadline = Instant::now() + self.state.config.grace;
        let is_busy = || {
            let connections = self.state.connections.load(Ordering::SeqCst);
            connections > 0 || !self.state.engine.has_ended()
        };
        while is_busy() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        !is_busy()
    }
}

/// The most connections beyond the limit that are told so. Others are closed at once.
const MOST_REFUSALS: usize = 64;

/// Counts a connection for as long as it lives.
struct Counted(Arc<State>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts the thread of a connection.
fn accept(state: &Arc<State>, stream: TcpStream) {
    let open = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
    let counted = Counted(Arc::clone(state));
    let most = state.config.max_connections;
    if open > most + MOST_REFUSALS {
        return;
    }
    let run = move || {
        let state = &counted.0;
        let Ok(mut connection) = Connection::new(stream, state.config.max_body) else {
            return;
        };
        if open > most {
            let message = format!("expected at most {most} connections, found more");
            let error = ApiError {
                retry_seconds: Some(1),
                ..ApiError::new(503, Some("too_many_connections"), message)
            };
            let _ = connection.write(&HttpResponse::from(&error), true, false);
            return connection.linger();
        }
        serve(state, connection);
    };
    let started = thread::Builder::new().name("connection".into()).spawn(run);
    if let Err(error) = started {
        tracing::warn!("the thread of a connection cannot be started: {error}");
    }
}

/// Serves the requests of a connection, one after the other.
fn serve(state: &State, mut connection: Connection) {
    loop {
        let request = match connection.read(|| state.is_stopping()) {
            Ok(request) => request,
            Err(Closed::Quietly) => return,
            Err(Closed::Refused(error)) => {
                let _ = connection.write(&HttpResponse::from(&error), true, false);
                return connection.linger();
            }
        };
        let keep_alive = request.keep_alive && !state.is_stopping();
        let handled = catch_unwind(AssertUnwindSafe(|| {
            super::routes::handle(state, &request, &mut connection, keep_alive)
        }));
        match handled {
            Ok(Ok(())) if keep_alive => {}
            Ok(_) => return,
            Err(_) => {
                let error = ApiError::new(500, None, "the server failed; see its log");
                let _ = connection.write(&HttpResponse::from(&error), true, false);
                return;
            }
        }
    }
}
