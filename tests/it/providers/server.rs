//! A keeper of keys on this machine: takes requests, records them, and answers as its protocol says, or as a fault says.
//!
//! Loopback only. A protocol is judged by what it holds itself; nothing of the clients under test is used here.
use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// What goes wrong with the next answer. The names are those of either protocol where both have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The answer never comes.
    Silent,
    /// The connection ends without an answer.
    HangUp,
    /// The head and half of the body come, and then the end.
    BreakOff,
    Throttled,
    /// Of its own: 500.
    Internal,
    /// 503, as the protocol says it.
    Away,
    Denied,
    /// 200 with half of the JSON.
    HalfJson,
    /// A page of a proxy's, with this status.
    Html(u16),
    /// A redirect to elsewhere.
    Redirect,
    /// 200 with JSON that has none of the fields.
    NoFields,
    /// A key of none, too few or too many bytes, as wrapped or unwrapped.
    Bytes(usize),
    /// The key itself, as wrapped.
    Echo,
    /// Done by another key or version than was asked for.
    OtherKey,
    /// 200 with a body without end.
    Endless,
    /// Fields that are no base64.
    NoBase64,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// An answer to be sent.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    pub fn new(status: u16, body: Value) -> Self {
        Self { status, body }
    }
}

pub trait Protocol: Send + Sync + 'static {
    /// For the `Content-Type` of its answers.
    const CONTENT_TYPE: &'static str;

    /// The answer as it should be.
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer;

    /// An answer for a fault that is the protocol's own: throttled, internal, away, denied.
    fn refusal(&self, fault: Fault) -> Answer;

    /// Makes a good answer a wrong one: bytes, echo, another key, no base64.
    fn spoil(&self, fault: Fault, asked: &Asked, answer: &mut Answer);
}

/// Every fault's text has this in it: what a remote party says is to be repeated nowhere.
pub const REMOTE_CANARY: &str = "remote-canary-5f1d";

pub struct Server<P> {
    pub base: String,
    pub protocol: Arc<P>,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    next: Mutex<VecDeque<Fault>>,
    always: Mutex<Option<Fault>>,
    /// Seconds that the server's clock is ahead.
    ahead: Mutex<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while it was held")
}

impl<P> Drop for Server<P> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<P: Protocol> Server<P> {
    pub async fn start(protocol: P) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let (protocol, shared) = (Arc::new(protocol), Arc::<Shared>::default());
        let (serving, seen) = (Arc::clone(&protocol), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (protocol, shared) = (Arc::clone(&serving), Arc::clone(&seen));
                tokio::spawn(async move {
                    let service = service_fn(|request| serve(Arc::clone(&protocol), Arc::clone(&shared), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { base, protocol, shared, task }
    }

    /// The next answers go wrong like this, in their order.
    pub fn next(&self, faults: &[Fault]) {
        lock(&self.shared.next).extend(faults);
    }

    /// All answers go wrong like this until another is said.
    pub fn always(&self, fault: impl Into<Option<Fault>>) {
        *lock(&self.shared.always) = fault.into();
    }

    pub fn set_ahead(&self, secs: u64) {
        *lock(&self.shared.ahead) = secs;
    }

    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    pub fn asked_count(&self) -> usize {
        lock(&self.shared.asked).len()
    }
}

type Body = Either<Full<Bytes>, StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Broken>>>>;

/// Ends a connection.
#[derive(Debug)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken off on purpose")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn serve<P: Protocol>(
    protocol: Arc<P>,
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked = Asked { method: head.method, path: head.uri.path().to_owned(), headers: head.headers, body };
    lock(&shared.asked).push(asked.clone());
    let fault = lock(&shared.next).pop_front().or(*lock(&shared.always));
    let now = SystemTime::now() + std::time::Duration::from_secs(*lock(&shared.ahead));
    let good = |body: Vec<u8>| response(200, P::CONTENT_TYPE, body);
    let text = |answer: &Answer| answer.body.to_string().into_bytes();
    let Some(fault) = fault else {
        let answer = protocol.answer(&asked, now);
        return Ok(response(answer.status, P::CONTENT_TYPE, text(&answer)));
    };
    match fault {
        Fault::Silent => std::future::pending().await,
        Fault::HangUp => Err(Broken),
        Fault::Throttled | Fault::Internal | Fault::Away | Fault::Denied => {
            let answer = protocol.refusal(fault);
            Ok(response(answer.status, P::CONTENT_TYPE, text(&answer)))
        }
        Fault::HalfJson => {
            let whole = text(&protocol.answer(&asked, now));
            Ok(good(whole[..whole.len() / 2].to_vec()))
        }
        Fault::BreakOff => {
            let whole = text(&protocol.answer(&asked, now));
            let half = Ok(Frame::data(Bytes::copy_from_slice(&whole[..whole.len() / 2])));
            Ok(streamed(stream::iter([half, Err(Broken)]), P::CONTENT_TYPE))
        }
        Fault::Endless => {
            let piece = || Ok(Frame::data(Bytes::from(vec![b' '; 16 * 1024])));
            Ok(streamed(stream::iter(std::iter::repeat_with(piece).take(4_096)), P::CONTENT_TYPE))
        }
        Fault::Html(status) => {
            Ok(response(status, "text/html", format!("<html><body>{REMOTE_CANARY}</body></html>").into_bytes()))
        }
        Fault::Redirect => {
            let mut response = response(307, "text/plain", Vec::new());
            response.headers_mut().insert("location", "http://127.0.0.1:9/elsewhere".parse().expect("a value"));
            Ok(response)
        }
        Fault::NoFields => Ok(good(format!("{{\"data\": {{\"x\": \"{REMOTE_CANARY}\"}}}}").into_bytes())),
        Fault::Bytes(_) | Fault::Echo | Fault::OtherKey | Fault::NoBase64 => {
            let mut answer = protocol.answer(&asked, now);
            protocol.spoil(fault, &asked, &mut answer);
            Ok(response(answer.status, P::CONTENT_TYPE, text(&answer)))
        }
    }
}

fn response(status: u16, content_type: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert("content-type", content_type.parse().expect("a value"));
    response
}

fn streamed(
    frames: impl futures::Stream<Item = Result<Frame<Bytes>, Broken>> + Send + 'static,
    content_type: &'static str,
) -> Response<Body> {
    let mut response = Response::new(Either::Right(StreamBody::new(Box::pin(frames) as stream::BoxStream<'static, _>)));
    response.headers_mut().insert("content-type", content_type.parse().expect("a value"));
    response
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The bytes of a field in base64.
pub fn field(body: &Value, name: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(body.get(name)?.as_str()?).ok()
}

/// AES-256-GCM with a random nonce before the ciphertext.
pub fn encrypt(key: &[u8; 32], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    use aes_gcm::{
        Aes256Gcm, KeyInit,
        aead::{Aead, Payload},
    };
    let nonce: [u8; 12] = rand::random();
    let cipher = Aes256Gcm::new(key.into());
    let sealed = cipher.encrypt(&nonce.into(), Payload { msg: plain, aad }).expect("it is short");
    [nonce.as_slice(), &sealed].concat()
}

pub fn decrypt(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    use aes_gcm::{
        Aes256Gcm, KeyInit,
        aead::{Aead, Payload},
    };
    let (nonce, text) = sealed.split_first_chunk::<12>()?;
    Aes256Gcm::new(key.into()).decrypt(nonce.into(), Payload { msg: text, aad }).ok()
}
