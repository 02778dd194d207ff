//! The tour's receiver: what a customer of the sample app would run. It verifies each delivery with the crate
//! `standardwebhooks`, which nobody here wrote, and keeps what it saw.
//!
//! On 127.0.0.1 only. One path a tenant; the first delivery to a path marked busy is answered 503 with `Retry-After: 1`,
//! so that the tour shows a retry.
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use standardwebhooks::Webhook;
use tokio::net::TcpListener;

const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What the receiver knows and saw, by path.
#[derive(Debug, Default)]
struct Known {
    secrets: HashMap<String, String>,
    busy: HashSet<String>,
    /// Ids of verified deliveries.
    verified: HashSet<String>,
    refused: usize,
}

/// A running receiver; it serves until the process ends.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub address: std::net::SocketAddr,
    known: Arc<Mutex<Known>>,
}

impl Receiver {
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let receiver = Self { address: listener.local_addr()?, known: Arc::default() };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| receiver.clone().answer(request));
                    // A connection that breaks is the sender's affair: it will send again.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(receiver)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The secret that deliveries to `path` must be signed with.
    pub fn expect(&self, path: &str, secret: &str, busy_at_first: bool) {
        let mut known = self.lock();
        known.secrets.insert(path.to_owned(), secret.to_owned());
        if busy_at_first {
            known.busy.insert(path.to_owned());
        }
    }

    /// How many distinct events were verified, and how many requests refused.
    pub fn seen(&self) -> (usize, usize) {
        let known = self.lock();
        (known.verified.len(), known.refused)
    }

    pub fn has_verified(&self, id: &str) -> bool {
        self.lock().verified.contains(id)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut known = self.lock();
        let path = head.uri.path();
        if known.busy.remove(path) {
            let mut response = answer(StatusCode::SERVICE_UNAVAILABLE);
            response.headers_mut().insert("retry-after", hyper::header::HeaderValue::from_static("1"));
            return Ok(response);
        }
        let genuine = known
            .secrets
            .get(path)
            .and_then(|secret| Webhook::new(secret).ok())
            .is_some_and(|webhook| webhook.verify(&body, &head.headers).is_ok());
        let id = head.headers.get("webhook-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(match id {
            Some(id) if genuine => {
                known.verified.insert(id);
                answer(StatusCode::NO_CONTENT)
            }
            _ => {
                known.refused += 1;
                answer(StatusCode::UNAUTHORIZED)
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing under this lock panics between two changes.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}
