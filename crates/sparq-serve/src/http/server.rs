//! The listener and its connections: [`Server`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use sparq_models::text::ChatTemplate;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::write_limit::WriteLimit;
use super::{ApiKeys, body, routes};
use crate::engine::{Decoding, Engine};
use crate::metrics::Metrics;

/// The time for the headers of a request, and the time that a connection waits for its next one.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// The most bytes of a request before its body.
const MOST_HEAD: usize = 32 << 10;
/// The time that a client may take to accept bytes.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// The most connections beyond the limit that are told so. Others are closed at once.
const MOST_REFUSALS: usize = 64;
/// The threads that read JSON and encode texts.
const ENCODERS: usize = 4;

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
    pub methods: Vec<(String, Decoding)>,
}

/// The part that all connections share.
pub(super) struct State {
    pub(super) engine: Engine,
    pub(super) model: ServerModel,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: ServerConfig,
    /// When the server began, in seconds since 1970.
    pub(super) created: u64,
    /// The memory for bodies.
    pub(super) body_memory: Semaphore,
    requests: AtomicU64,
    stopping: watch::Sender<bool>,
}

impl State {
    /// Returns a name for a response that no other response of this server has.
    pub(super) fn next_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:x}-{number:08x}", self.created)
    }
}

/// Returns the seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A server that listens.
pub struct Server {
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<State>,
}

/// Stops a [`Server`] from another thread.
#[derive(Clone)]
pub struct ServerHandle(Arc<State>);

impl ServerHandle {
    /// Stops the server: no new connections and requests. [`Server::run`] returns when the running
    /// ones have ended.
    pub fn stop(&self) {
        self.0.stopping.send_replace(true);
        self.0.engine.stop();
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
        // One thread is enough: requests are few and long. The cores are the engine's.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(ENCODERS)
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            engine,
            model,
            metrics,
            body_memory: Semaphore::new(body::permits(config.max_body)),
            config,
            created: now(),
            requests: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
        });
        Ok(Self {
            runtime,
            listener,
            address,
            state,
        })
    }

    /// Returns the address, with the port that the system chose if it was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle to stop it.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(Arc::clone(&self.state))
    }

    /// Serves connections until a handle stops the server. Then waits for running requests, up to
    /// the time of the configuration. Returns whether all of them ended.
    pub fn run(self) -> bool {
        let Self {
            runtime,
            listener,
            state,
            ..
        } = self;
        let ended = runtime.block_on(serve(listener, state));
        // A thread may still encode a prompt that nobody waits for.
        runtime.shutdown_background();
        ended
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) -> bool {
    let connections = Connections::new(&state);
    let mut stopping = state.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|&stops| stops) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connections.begin(stream),
            // Too many open files, for one. Others may be closed meanwhile.
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let ended = async {
        connections.graceful.shutdown().await;
        while !state.engine.has_ended() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(state.config.grace, ended).await.is_ok()
}

/// The open connections.
struct Connections {
    graceful: GracefulShutdown,
    router: Router,
    places: Arc<Semaphore>,
    /// Answers connections for which there is no place.
    refusal: Router,
    refusals: Arc<Semaphore>,
}

impl Connections {
    fn new(state: &Arc<State>) -> Self {
        let most = state.config.max_connections;
        Self {
            graceful: GracefulShutdown::new(),
            router: routes::router(Arc::clone(state)),
            places: Arc::new(Semaphore::new(most)),
            refusal: routes::refusal(most),
            refusals: Arc::new(Semaphore::new(MOST_REFUSALS)),
        }
    }

    fn begin(&self, stream: TcpStream) {
        let place = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned();
        if let Ok(place) = place(&self.places) {
            self.spawn(stream, self.router.clone(), place);
        } else if let Ok(place) = place(&self.refusals) {
            self.spawn(stream, self.refusal.clone(), place);
        }
    }

    /// Starts the task of a connection.
    fn spawn(&self, stream: TcpStream, router: Router, place: OwnedSemaphorePermit) {
        // It only saves time.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(WriteLimit::new(stream, WRITE_TIME));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_header_size(MOST_HEAD)
            .serve_connection(io, TowerToHyperService::new(router));
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
}
