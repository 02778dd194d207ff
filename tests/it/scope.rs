//! What a scope costs in trips to the database, counted on the wire by a proxy: each answer of the server ends in a message
//! that says it is ready for the next question.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use reeve_jobs::tenant::{Directory, Scope};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Town, until};

/// Counts the server's ReadyForQuery in what passes (PostgreSQL's manual, "Message Formats": a letter, four bytes of
/// length that count themselves, the rest).
#[derive(Default)]
struct Answers {
    pending: Vec<u8>,
}

impl Answers {
    fn take(&mut self, bytes: &[u8]) -> usize {
        self.pending.extend_from_slice(bytes);
        let mut ready = 0;
        while let Some(head) = self.pending.first_chunk::<5>() {
            let length = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if self.pending.len() < length {
                break;
            }
            ready += usize::from(head[0] == b'Z');
            self.pending.drain(..length);
        }
        ready
    }
}

/// Options that lead through a proxy, and how many answers it has seen.
async fn counted(options: &PgConnectOptions) -> (PgConnectOptions, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (host, target) = (options.get_host().to_owned(), options.get_port());
    let answers = Arc::new(AtomicUsize::new(0));
    let counter = answers.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect((host.as_str(), target)).await.expect("the server");
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            let counter = counter.clone();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let (mut seen, mut buffer) = (Answers::default(), [0; 8192]);
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    counter.fetch_add(seen.take(&buffer[..n]), Ordering::SeqCst);
                    if to_client.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (options.clone().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable), answers)
}

#[tokio::test]
async fn a_scope_costs_one_trip_beyond_its_work_and_its_commit() {
    let town = Town::new().await;
    let (options, answers) = counted(&town.db.options("reeve_worker")).await;
    let pool = reeve_jobs::program::db::pool(options, 1).await.expect("a pool");
    let directory = Directory::new(pool.clone());
    let context = town.context(&town.a).await;
    let work = "SELECT count(*) FROM reeve.jobs";
    // Once to have the statement prepared, the connection made and the directory's entry read.
    for turn in 0..2 {
        // What the connection's release asks is none of the next scope's.
        until("the connection is back", async || pool.num_idle() == 1).await;
        let trips = || answers.load(Ordering::SeqCst);
        let before = trips();
        let mut scope = Scope::open(&directory, &context).await.expect("a scope");
        let opened = trips();
        scope.fetch_value::<i64>(sqlx::query_scalar(work)).await.expect("a count");
        let worked = trips();
        scope.commit().await.expect("a commit");
        if turn == 1 {
            assert_eq!((opened - before, worked - opened), (1, 1), "to open, to work");
            assert!(
                trips() - worked <= 2,
                "to commit, and perhaps already the release's proof, which nobody waits for"
            );
        }
    }
}
