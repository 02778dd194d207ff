//! The mail sink as a mail program sees it: over TCP.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::*;

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(sink: &MailSink) -> Self {
        let mut client = Self(BufReader::new(TcpStream::connect(&sink.address).await.unwrap()));
        assert!(client.reply().await.starts_with("220 "));
        client
    }

    async fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    async fn say(&mut self, line: &[u8]) -> String {
        self.0.write_all(line).await.unwrap();
        self.reply().await
    }

    /// Each line and the code it must be answered with.
    async fn talk(&mut self, lines: &[(&str, &str)]) {
        for (line, code) in lines {
            let reply = self.say(format!("{line}\r\n").as_bytes()).await;
            assert!(reply.starts_with(code), "{line:?} was answered with {reply:?}");
        }
    }
}

const ENVELOPE: [(&str, &str); 4] =
    [("EHLO test", "250"), ("MAIL FROM:<a@example.test>", "250"), ("RCPT TO:<b@example.test>", "250"), ("DATA", "354")];

fn mails(dir: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

#[tokio::test]
async fn a_mail_is_kept_with_its_envelope_on_top_and_its_dots_unstuffed() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MailSink::start(dir.path()).await.unwrap();
    let mut client = Client::connect(&sink).await;
    client.talk(&[("EHLO test", "250"), ("MAIL FROM:<a@example.test> SIZE=90 BODY=8BITMIME", "250")]).await;
    client.talk(&[("rcpt to: <b@example.test>", "250"), ("RCPT TO:<c@example.test>", "250"), ("DATA", "354")]).await;
    client.talk(&[("Subject: hello\r\n\r\n..one dot\r\n..\r\nend\r\n.", "250"), ("QUIT", "221")]).await;
    sink.stop().await;
    let kept = mails(dir.path());
    assert_eq!(kept.len(), 1);
    let (head, rest) = kept[0].split_once("X-Envelope-Received: ").unwrap();
    assert_eq!(
        head,
        "X-Envelope-From: <a@example.test>\r\nX-Envelope-To: <b@example.test>\r\nX-Envelope-To: <c@example.test>\r\n"
    );
    let (_, message) = rest.split_once("\r\n").unwrap();
    assert_eq!(message, "Subject: hello\r\n\r\n.one dot\r\n.\r\nend\r\n");
}

#[tokio::test]
async fn two_mails_of_one_connection_are_kept_in_order_and_reset_forgets() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MailSink::start(dir.path()).await.unwrap();
    let mut client = Client::connect(&sink).await;
    client.talk(&ENVELOPE).await;
    client.talk(&[("first\r\n.", "250"), ("DATA", "503"), ("NOOP", "250")]).await;
    client
        .talk(&[("MAIL FROM:<>", "250"), ("RCPT TO:<d@example.test>", "250"), ("RSET", "250"), ("DATA", "503")])
        .await;
    client
        .talk(&[("MAIL FROM:<>", "250"), ("RCPT TO:<e@example.test>", "250"), ("DATA", "354"), ("second\r\n.", "250")])
        .await;
    let kept = mails(dir.path());
    assert_eq!(kept.len(), 2);
    assert!(kept[0].ends_with("first\r\n") && kept[1].ends_with("second\r\n"), "{kept:?}");
    assert!(kept[1].starts_with("X-Envelope-From: <>\r\nX-Envelope-To: <e@example.test>\r\nX-Envelope-Received"));
}

#[tokio::test]
async fn commands_out_of_order_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MailSink::start(dir.path()).await.unwrap();
    let mut client = Client::connect(&sink).await;
    client
        .talk(&[("MAIL FROM:<a@example.test>", "503"), ("EHLO test", "250"), ("RCPT TO:<b@example.test>", "503")])
        .await;
    client.talk(&[("MAIL FROM:a@example.test", "501"), ("VRFY b", "502"), ("DATA", "503"), ("NOOP", "250")]).await;
}

#[tokio::test]
async fn an_address_cannot_add_a_header() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MailSink::start(dir.path()).await.unwrap();
    let mut client = Client::connect(&sink).await;
    client.talk(&[("EHLO test", "250"), ("MAIL FROM:<a\rBcc: x@example.test>", "501")]).await;
}

#[tokio::test]
async fn a_bare_line_feed_does_not_end_a_mail() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MailSink::start(dir.path()).await.unwrap();
    let mut client = Client::connect(&sink).await;
    client.talk(&ENVELOPE).await;
    client.talk(&[("one\n.\nMAIL FROM:<evil@example.test>\r\n.", "250")]).await;
    let kept = mails(dir.path());
    assert_eq!(kept.len(), 1);
    assert!(kept[0].contains("MAIL FROM:<evil@example.test>"));
}

#[tokio::test]
async fn lines_and_messages_are_bounded_and_the_connection_stays_usable() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MailSink::start(dir.path()).await.unwrap();
    let mut client = Client::connect(&sink).await;
    let long = format!("NOOP {}\r\n", "x".repeat(COMMAND_BYTES_MAX));
    assert!(client.say(long.as_bytes()).await.starts_with("500"));
    let declared = format!("MAIL FROM:<a@example.test> SIZE={}", MESSAGE_BYTES_MAX + 1);
    client.talk(&[("EHLO test", "250"), (&declared, "552")]).await;

    client.talk(&ENVELOPE).await;
    let line = "x".repeat(LINE_BYTES_MAX + 1);
    client.talk(&[(&format!("{line}\r\n."), "554")]).await;

    client.talk(&ENVELOPE).await;
    let line = format!("{}\r\n", "x".repeat(60_000));
    for _ in 0..=MESSAGE_BYTES_MAX / line.len() {
        client.0.write_all(line.as_bytes()).await.unwrap();
    }
    client.talk(&[(".", "552"), ("NOOP", "250")]).await;
    assert!(mails(dir.path()).is_empty());
}
