//! The door against receivers that misbehave, each a few lines of TCP on loopback.

use std::{
    future::{Future, pending},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LENIENT: AddressPolicy = AddressPolicy { loopback_allowed: true };
const NOW: &str = "1994-11-06T08:49:07Z";

/// A receiver: its URL, the connections it has seen, and its task.
struct Receiver {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Handles each connection with `handle`, one after another.
    async fn start<F: Future<Output = ()> + Send>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> Self {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::SeqCst);
                handle(stream).await;
            }
        });
        Self { addr, connections, task }
    }

    /// Answers every request with these bytes, then closes.
    async fn answering(answer: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await
    }

    fn url(&self) -> EndpointUrl {
        self.url_at("127.0.0.1")
    }

    fn url_at(&self, host: &str) -> EndpointUrl {
        parse(&format!("http://{host}:{}/hook", self.addr.port()))
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads one request to the end of its body and returns it as text.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text.into_owned();
            }
        }
        let mut buffer = [0; 4_096];
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return String::from_utf8_lossy(&request).into_owned(),
        }
    }
}

/// Any port, so that names can stand for the receivers here.
fn parse(text: &str) -> EndpointUrl {
    let port = text.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    EndpointUrl::parse(text, &UrlPolicy { http_allowed: true, ports_allowed: vec![port], address: LENIENT }).unwrap()
}

/// Answers every name alike and counts the questions; `None` never answers.
#[derive(Debug)]
struct FixedNames {
    addresses: Option<Result<Vec<IpAddr>, LookupFault>>,
    asked: AtomicUsize,
}

impl FixedNames {
    fn new(addresses: Option<Result<Vec<IpAddr>, LookupFault>>) -> Arc<Self> {
        Arc::new(Self { addresses, asked: AtomicUsize::new(0) })
    }

    fn to(addresses: &[&str]) -> Arc<Self> {
        Self::new(Some(Ok(addresses.iter().map(|addr| addr.parse().unwrap()).collect())))
    }
}

impl Names for FixedNames {
    fn addresses(&self, _name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, LookupFault>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.addresses.clone() {
            Some(answer) => Box::pin(async { answer }),
            None => Box::pin(pending()),
        }
    }
}

/// Long enough that no healthy exchange here meets it, however busy the machine.
fn patient() -> HttpPolicy {
    HttpPolicy {
        total_timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(30),
        address: LENIENT,
        ..HttpPolicy::default()
    }
}

/// For receivers that never finish: every exchange meets the total, none the one for connecting.
fn impatient() -> HttpPolicy {
    HttpPolicy { total_timeout: Duration::from_millis(1_500), connect_timeout: Duration::from_secs(1), ..patient() }
}

async fn send_through(client: &WebhookClient, url: &EndpointUrl) -> Sent {
    let far = Instant::now() + Duration::from_secs(3_600);
    client.send(url, HeaderMap::new(), Bytes::from_static(b"{}"), far, NOW.parse().unwrap()).await
}

async fn send(policy: HttpPolicy, url: &EndpointUrl) -> Sent {
    send_through(&WebhookClient::with_names(policy, FixedNames::to(&["127.0.0.1"])).unwrap(), url).await
}

#[tokio::test]
async fn a_2xx_is_delivered_and_nothing_else_is() {
    for (answer, result, status, response_bytes) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", SendResult::Delivered, 200, 2),
        ("HTTP/1.1 204 No Content\r\n\r\n", SendResult::Delivered, 204, 0),
        ("HTTP/1.1 299 Odd\r\ncontent-length: 0\r\n\r\n", SendResult::Delivered, 299, 0),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", SendResult::Redirected, 304, 0),
        ("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", SendResult::RefusedStatus, 400, 0),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", SendResult::RefusedStatus, 410, 0),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops", SendResult::RefusedStatus, 500, 4),
        ("HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n", SendResult::RefusedStatus, 999, 0),
    ] {
        let receiver = Receiver::answering(answer).await;
        let sent = send(patient(), &receiver.url()).await;
        assert_eq!((sent.result, sent.status), (result, Some(status)), "{answer}");
        assert_eq!((sent.response_bytes, sent.retry_after), (response_bytes, None), "{answer}");
    }
}

#[tokio::test]
async fn the_request_is_a_post_with_our_headers_and_the_very_bytes() {
    let (requests, mut received) = mpsc::unbounded_channel();
    let receiver = Receiver::start(move |mut stream| {
        let requests = requests.clone();
        async move {
            requests.send(read_request(&mut stream).await).unwrap();
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let client = WebhookClient::with_names(patient(), FixedNames::to(&[])).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", "msg_1".parse().unwrap());
    let body = Bytes::from_static("{\"a\": \"ü\"}".as_bytes());
    let far = Instant::now() + Duration::from_secs(3_600);
    client.send(&receiver.url(), headers, body, far, NOW.parse().unwrap()).await;
    let request = received.recv().await.unwrap();
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n{\"a\": \"ü\"}"), "{request}");
    assert!(request.contains("webhook-id: msg_1\r\n"), "{request}");
    assert!(request.contains(&format!("user-agent: Reeve/{}\r\n", env!("CARGO_PKG_VERSION"))), "{request}");
    assert!(!request.to_lowercase().contains("accept-encoding"), "{request}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let location = target.addr;
    for status in [301, 302, 303, 307, 308] {
        let receiver = Receiver::start(move |mut stream| async move {
            read_request(&mut stream).await;
            let answer =
                format!("HTTP/1.1 {status} Moved\r\nlocation: http://{location}/\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await;
        let sent = send(patient(), &receiver.url()).await;
        assert_eq!((sent.result, sent.status), (SendResult::Redirected, Some(status)));
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn retry_after_is_read_in_both_forms_at_any_status_and_capped() {
    let policy = HttpPolicy { retry_after_max: Duration::from_secs(7_200), ..patient() };
    for (answer, secs) in [
        ("HTTP/1.1 429 Slow\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n", Some(120)),
        ("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n", Some(7)),
        ("HTTP/1.1 500 Oops\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", Some(7)),
        ("HTTP/1.1 429 Slow\r\nretry-after: 999999\r\ncontent-length: 0\r\n\r\n", Some(7_200)),
        ("HTTP/1.1 429 Slow\r\nretry-after: later\r\ncontent-length: 0\r\n\r\n", None),
    ] {
        let receiver = Receiver::answering(answer).await;
        let sent = send(policy.clone(), &receiver.url()).await;
        assert_eq!(sent.retry_after, secs.map(Duration::from_secs), "{answer}");
    }
    let receiver = Receiver::answering(
        "HTTP/1.1 429 Slow\r\nretry-after: Sun, 06 Nov 1994 09:49:07 GMT\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let sent = send(policy, &receiver.url()).await;
    // An hour from `NOW`, less what the exchange itself took.
    assert_eq!(sent.retry_after, Some(Duration::from_secs(3_600).saturating_sub(sent.duration)));
}

#[tokio::test]
async fn a_body_that_drips_for_ever_is_cut_at_the_deadline() {
    for (head, result, status) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", SendResult::TimedOut, 200),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 1000000\r\n\r\n", SendResult::RefusedStatus, 500),
    ] {
        let receiver = Receiver::start(move |mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
        .await;
        let sent = send(impatient(), &receiver.url()).await;
        assert_eq!((sent.result, sent.status), (result, Some(status)));
    }
}

#[tokio::test]
async fn a_head_that_drips_for_ever_is_cut_at_the_deadline() {
    let receiver = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    let sent = send(impatient(), &receiver.url()).await;
    assert_eq!((sent.result, sent.status), (SendResult::TimedOut, None));
}

#[tokio::test]
async fn a_receiver_that_never_answers_times_out() {
    let receiver = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        pending::<()>().await;
    })
    .await;
    let sent = send(impatient(), &receiver.url()).await;
    assert_eq!((sent.result, sent.status, sent.response_bytes), (SendResult::TimedOut, None, 0));

    // The caller's deadline counts too, when it is the sooner one. Without it this would take an hour.
    let policy = HttpPolicy { total_timeout: Duration::from_secs(3_600), ..impatient() };
    let client = WebhookClient::with_names(policy, FixedNames::to(&[])).unwrap();
    let deadline = Instant::now() + Duration::from_millis(1_500);
    let sent = client.send(&receiver.url(), HeaderMap::new(), Bytes::new(), deadline, NOW.parse().unwrap()).await;
    assert_eq!(sent.result, SendResult::TimedOut);
}

#[test]
fn a_proxy_in_the_environment_is_ignored() {
    // The environment belongs to a process, so another one runs the test that would fail.
    let inner = "clients::http::tests::a_2xx_is_delivered_and_nothing_else_is";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([inner, "--exact", "--test-threads=1"]).env_remove("NO_PROXY").env_remove("no_proxy");
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let output = command.output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("1 passed"), "{report}");
}

#[tokio::test]
async fn a_long_body_is_read_to_the_limit_and_costs_the_connection() {
    for (framing, chunked) in [("content-length: 10485760", false), ("transfer-encoding: chunked", true)] {
        let (ends, mut ended) = mpsc::unbounded_channel();
        let receiver = Receiver::start(move |mut stream| {
            let ends = ends.clone();
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()).await;
                let kilobyte = vec![b'x'; 1_024];
                let mut written = 0_u32;
                while written < 10 * 1_024 {
                    let size: &[u8] = if chunked { b"400\r\n" } else { b"" };
                    let end: &[u8] = if chunked { b"\r\n" } else { b"" };
                    if stream.write_all(&[size, &kilobyte, end].concat()).await.is_err() {
                        break;
                    }
                    written += 1;
                }
                // The peer's end of the connection is gone when nothing more can be read.
                let _ = stream.read(&mut [0; 1]).await;
                ends.send(()).unwrap();
            }
        })
        .await;
        let policy = patient();
        let client = WebhookClient::with_names(policy.clone(), FixedNames::to(&[])).unwrap();
        let sent = send_through(&client, &receiver.url()).await;
        assert_eq!((sent.result, sent.response_bytes), (SendResult::Delivered, policy.response_bytes_max));
        // Hangs if the connection is kept: the client is still alive here.
        ended.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_2xx_whose_body_breaks_off_is_delivered() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    let sent = send(patient(), &receiver.url()).await;
    assert_eq!((sent.result, sent.status, sent.response_bytes), (SendResult::Delivered, Some(200), 4));
}

#[tokio::test]
async fn a_receiver_that_talks_no_http_is_unreachable() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(RESPONSE_HEADERS_MAX + 1));
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(2_000_000));
    for answer in ["", "garbage\r\n\r\n", "HTTP/1.1 200", &many, &huge] {
        let answer = answer.to_owned();
        let receiver = Receiver::start(move |mut stream| {
            let answer = answer.clone();
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
        .await;
        let sent = send(patient(), &receiver.url()).await;
        assert_eq!((sent.result, sent.status), (SendResult::Unreachable, None));
    }
}

#[tokio::test]
async fn a_connection_closed_at_once_and_failed_tls_are_unreachable() {
    let closing = Receiver::start(|stream| async move { drop(stream) }).await;
    assert_eq!(send(patient(), &closing.url()).await.result, SendResult::Unreachable);
    let plain = Receiver::start(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let url = parse(&format!("https://127.0.0.1:{}/", plain.addr.port()));
    assert_eq!(send(patient(), &url).await.result, SendResult::Unreachable);
}

#[tokio::test]
async fn closed_filtered_and_refused_read_the_same_to_a_tenant() {
    let port = TcpListener::bind((LOOPBACK, 0)).await.unwrap().local_addr().unwrap().port();
    let closed = send(patient(), &parse(&format!("http://127.0.0.1:{port}/"))).await;
    assert_eq!(closed.result, SendResult::Unreachable);

    // A lookup without an answer stands for a filtered port: both end by the time-out for connecting.
    let silent = WebhookClient::with_names(impatient(), FixedNames::new(None)).unwrap();
    let filtered = send_through(&silent, &parse("http://a.example:1/")).await;
    assert_eq!(filtered.result, SendResult::Unreachable);

    // So does a deadline that falls before that time-out.
    let silent = WebhookClient::with_names(patient(), FixedNames::new(None)).unwrap();
    let soon = Instant::now() + Duration::from_millis(50);
    let url = parse("http://a.example:1/");
    let cut = silent.send(&url, HeaderMap::new(), Bytes::new(), soon, NOW.parse().unwrap()).await;
    assert_eq!(cut.result, SendResult::Unreachable);

    let no_such_name = Some(Err(LookupFault("no such name".to_owned())));
    let absent = WebhookClient::with_names(patient(), FixedNames::new(no_such_name)).unwrap();
    assert_eq!(send_through(&absent, &url).await.result, SendResult::Unreachable);
    let empty = WebhookClient::with_names(patient(), FixedNames::to(&[])).unwrap();
    assert_eq!(send_through(&empty, &url).await.result, SendResult::Unreachable);

    let inside = WebhookClient::with_names(patient(), FixedNames::to(&["10.0.0.1"])).unwrap();
    let refused = send_through(&inside, &url).await;
    assert_eq!(refused.result, SendResult::AddressRefused);
    assert_eq!(refused.result.tenant_text(), closed.result.tenant_text());
}

#[tokio::test]
async fn one_bad_address_among_good_ones_refuses_the_name() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let url = receiver.url_at("hooks.example");
    let good = WebhookClient::with_names(patient(), FixedNames::to(&["127.0.0.1"])).unwrap();
    assert_eq!(send_through(&good, &url).await.result, SendResult::Delivered);
    assert_eq!(receiver.connections(), 1);
    for mixed in [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "fd00::1"]] {
        let client = WebhookClient::with_names(patient(), FixedNames::to(&mixed)).unwrap();
        assert_eq!(send_through(&client, &url).await.result, SendResult::AddressRefused, "{mixed:?}");
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_the_answer_is_what_is_connected_to() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let names = FixedNames::to(&["127.0.0.1"]);
    let client = WebhookClient::with_names(patient(), names.clone()).unwrap();
    // Nobody else could answer for this name, so the connection can only have come of our own lookup.
    assert_eq!(send_through(&client, &receiver.url_at("nowhere.invalid")).await.result, SendResult::Delivered);
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_name_or_address_of_this_machine_is_refused_unless_allowed() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let strict = WebhookClient::new(HttpPolicy { address: AddressPolicy::default(), ..patient() }).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let sent = send_through(&strict, &receiver.url_at(host)).await;
        assert_eq!((sent.result, sent.status), (SendResult::AddressRefused, None), "{host}");
    }
    assert_eq!(receiver.connections(), 0);
    let lenient = WebhookClient::new(patient()).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        assert_eq!(send_through(&lenient, &receiver.url_at(host)).await.result, SendResult::Delivered, "{host}");
    }
}

#[tokio::test]
async fn a_kept_connection_serves_the_next_send() {
    let receiver = Receiver::start(|mut stream| async move {
        while !read_request(&mut stream).await.is_empty() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let client = WebhookClient::with_names(patient(), FixedNames::to(&[])).unwrap();
    for _ in 0..5 {
        assert_eq!(send_through(&client, &receiver.url()).await.result, SendResult::Delivered);
    }
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn timeouts_that_make_no_sense_are_refused() {
    for (connect_ms, total_ms) in [(0, 1_000), (1_000, 1_000), (2_000, 1_000)] {
        let policy = HttpPolicy {
            connect_timeout: Duration::from_millis(connect_ms),
            total_timeout: Duration::from_millis(total_ms),
            ..patient()
        };
        let refused = WebhookClient::with_names(policy, FixedNames::to(&[])).unwrap_err();
        assert!(matches!(refused, HttpClientError::Timeouts));
    }
}

#[test]
fn the_stored_names_are_those_that_the_attempt_log_knows() {
    let schema = include_str!("../../../../migrations/0007_webhooks.sql");
    for result in [
        SendResult::Delivered,
        SendResult::RefusedStatus,
        SendResult::Redirected,
        SendResult::TimedOut,
        SendResult::Unreachable,
        SendResult::AddressRefused,
    ] {
        assert!(schema.contains(&format!("'{}'", result.as_str())), "{result:?}");
    }
}
