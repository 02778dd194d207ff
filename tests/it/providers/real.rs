//! Other people's keepers judge ours: OpenBao itself over TLS, as its package has it built, and moto's KMS, which knows the
//! shapes of AWS's JSON though no signatures.
//!
//! `tests/keepers/install` installs both. Without them these tests fail: a skipped judge would pass everything.
use std::{
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
};

use reeve_jobs::seal::provider::{Outage, Refusal, WrapContext, rewrap_proven};
use reeve_worker::clients::kms::KmsSettings;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Logged, TIMEOUT_MS, away, canary_key, moves_from_and_to_a_local_key, new_key, open, opens_only_in_its_context,
    refused, refuses_changed_wraps, settings, tenant,
};
use crate::support::until;

/// Where the packages are, after making sure that they are there and are the ones asked for.
fn installed() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = std::env::var_os("REEVE_TEST_KEEPERS").map_or_else(|| tests.join("../.reeve/keepers"), PathBuf::from);
    let wanted = std::fs::read_to_string(tests.join("keepers/requirements.txt")).expect("a manifest of this tree");
    let found = std::fs::read_to_string(place.join("manifest")).unwrap_or_default();
    assert!(
        found == wanted,
        "the keepers in {} are {}: run tests/keepers/install (REEVE_TEST_KEEPERS names another place)",
        place.display(),
        if found.is_empty() { "not installed" } else { "of other versions" },
    );
    place.canonicalize().expect("it was just read").join("venv/bin")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A server that ends with the test, and should the test be killed, with its standard input.
struct Keeper {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Keeper {
    fn start(command: &[&str], dir: &Path) -> Self {
        let log = std::fs::File::create(dir.join("log")).expect("a log");
        let mut shell = Command::new("sh")
            .args(["-c", r#""$@" </dev/null & keeper=$!; cat >/dev/null; kill -9 "$keeper"; wait"#, "keeper"])
            .args(command)
            .env("HOME", dir)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let stdin = shell.stdin.take();
        Self { shell, stdin }
    }

    fn stop(&mut self) {
        drop(self.stdin.take());
        let _ = self.shell.wait();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Bao {
    keeper: Keeper,
    dir: tempfile::TempDir,
    address: String,
    program: PathBuf,
}

const ROOT: &str = "root-token-of-the-tests";
/// What a worker may: use the key, and make none.
const POLICY: &str = r#"
path "team/transit/encrypt/*" { capabilities = ["update"] }
path "team/transit/decrypt/*" { capabilities = ["update"] }
"#;

impl Bao {
    /// A server in memory, with a certificate of an authority of its own, a transit engine and one key.
    async fn start() -> Self {
        let program = installed().join("bao");
        let dir = tempfile::tempdir().expect("a directory");
        let (port, certificates) = (free_port(), dir.path().to_str().expect("a path").to_owned());
        let listen = format!("-dev-listen-address=127.0.0.1:{port}");
        let certificates = format!("-dev-tls-cert-dir={certificates}");
        let root = format!("-dev-root-token-id={ROOT}");
        let bao = program.to_str().expect("a path");
        let command = [bao, "server", "-dev-tls", &certificates, &listen, &root, "-dev-no-store-token"];
        let keeper = Keeper::start(&command, dir.path());
        let bao = Self { keeper, dir, address: format!("https://127.0.0.1:{port}"), program };
        until("OpenBao is unsealed", async || bao.ca().exists() && bao.run(&["status"]).status.success()).await;
        bao.must(&["secrets", "enable", "-path=team/transit", "transit"]);
        bao.must(&["write", "-f", "team/transit/keys/reeve"]);
        bao
    }

    fn ca(&self) -> PathBuf {
        let names = std::fs::read_dir(self.dir.path()).expect("a directory");
        let mut paths = names.map(|entry| entry.expect("an entry").path());
        paths.find(|path| path.to_string_lossy().ends_with("-ca.pem")).unwrap_or_default()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program)
            .args(arguments)
            .env("HOME", self.dir.path())
            .env("BAO_ADDR", &self.address)
            .env("BAO_TOKEN", ROOT)
            .env("BAO_CACERT", self.ca())
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    }

    fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// A token that may use keys and make none.
    fn token(&self) -> String {
        let file = self.dir.path().join("policy.hcl");
        std::fs::write(&file, POLICY).expect("written");
        self.must(&["policy", "write", "reeve", file.to_str().expect("a path")]);
        self.must(&["token", "create", "-policy=reeve", "-field=token"])
    }

    fn settings(&self, vault: Value) -> KmsSettings {
        let mut value = json!({"timeout_ms": TIMEOUT_MS, "vault": {"address": self.address, "ca_file": self.ca()}});
        value["vault"].as_object_mut().expect("an object").extend(vault.as_object().expect("an object").clone());
        settings(value)
    }
}

#[tokio::test]
async fn openbao_opens_a_wrapped_key_only_in_its_context() {
    let bao = Bao::start().await;
    let settings = bao.settings(json!({"token": bao.token()}));
    let provider = open("vault:team/transit/reeve#1", &settings).await;
    opens_only_in_its_context(&*provider).await;
    refuses_changed_wraps(&*provider).await;
    moves_from_and_to_a_local_key(&*provider).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let error = open("vault:team/transit/typo#1", &settings).await.wrap(context, &new_key()).await.expect_err("no key");
    assert_eq!(refused(&error), Refusal::Permission, "with `update` alone no key is made");
    let error = open("vault:elsewhere/reeve#1", &settings).await.wrap(context, &new_key()).await.expect_err("no mount");
    assert!(matches!(refused(&error), Refusal::Permission | Refusal::UnknownKey), "{error}");
}

#[tokio::test]
async fn openbao_keeps_versions_apart() {
    let bao = Bao::start().await;
    let settings = bao.settings(json!({"token": ROOT}));
    let first = open("vault:team/transit/reeve#1", &settings).await;
    let second = open("vault:team/transit/reeve#2", &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = new_key();
    let wrapped = first.wrap(context, &key).await.expect("wrapped");
    assert_eq!(refused(&second.wrap(context, &key).await.expect_err("not made yet")), Refusal::Version);
    bao.must(&["write", "-f", "team/transit/keys/reeve/rotate"]);
    assert!(first.wrap(context, &key).await.expect("the first still").starts_with(b"vault:v1:"));
    let moved = rewrap_proven(&*second, &*first, context, &wrapped).await.expect("re-wrapped");
    assert!(moved.starts_with(b"vault:v2:"));
    assert_eq!(second.unwrap(context, &moved).await.expect("unwrapped").reveal(), key.reveal());

    // Why a key comes out to be re-wrapped: the engine's own call knows no associated data. Should it learn, this fails.
    let associated = format!("associated_data={}", super::server::base64(&context.bytes()));
    let ciphertext = format!("ciphertext={}", String::from_utf8(wrapped.clone()).expect("text"));
    let inside = bao.run(&["write", "team/transit/rewrap/reeve", &ciphertext, &associated]);
    let said = String::from_utf8_lossy(&inside.stderr);
    assert!(!inside.status.success() && said.contains("message authentication failed"), "{said}");

    bao.must(&["write", "team/transit/keys/reeve/config", "min_decryption_version=2"]);
    assert_eq!(refused(&first.unwrap(context, &wrapped).await.expect_err("retired there")), Refusal::Version);
    assert_eq!(refused(&first.wrap(context, &key).await.expect_err("retired there")), Refusal::Version);
    bao.must(&["write", "team/transit/keys/reeve/config", "deletion_allowed=true"]);
    bao.must(&["delete", "team/transit/keys/reeve"]);
    assert_eq!(refused(&second.unwrap(context, &moved).await.expect_err("deleted")), Refusal::UnknownKey);
    bao.must(&["write", "-f", "team/transit/keys/reeve"]);
    bao.must(&["write", "-f", "team/transit/keys/reeve/rotate"]);
    let error = second.unwrap(context, &moved).await.expect_err("another root under the same name");
    assert_eq!(refused(&error), Refusal::Opening);
}

#[tokio::test]
async fn openbaos_tokens_are_renewed_from_their_file_and_its_absence_is_an_outage() {
    let mut bao = Bao::start().await;
    let file = bao.dir.path().join("token");
    let (old, next) = (bao.token(), bao.token());
    std::fs::write(&file, &old).expect("written");
    let provider = open("vault:team/transit/reeve#1", &bao.settings(json!({"token_file": file}))).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    bao.must(&["token", "revoke", &old]);
    assert_eq!(refused(&provider.unwrap(context, &wrapped).await.expect_err("revoked")), Refusal::Permission);
    std::fs::write(&file, &next).expect("written");
    provider.unwrap(context, &wrapped).await.expect("by the next token");

    let stranger = settings(json!({"vault": {"address": bao.address, "token": next}}));
    let stranger = open("vault:team/transit/reeve#1", &stranger).await;
    let error = stranger.unwrap(context, &wrapped).await.expect_err("an authority that nobody knows");
    assert_eq!(away(&error), Outage::Unreachable);

    bao.must(&["operator", "seal"]);
    assert_eq!(away(&provider.unwrap(context, &wrapped).await.expect_err("sealed")), Outage::Failing);
    bao.keeper.stop();
    assert_eq!(away(&provider.unwrap(context, &wrapped).await.expect_err("gone")), Outage::Unreachable);
}

/// Over TLS and HTTP/2, as nothing else here is.
#[tokio::test]
async fn openbao_sees_what_no_log_shows() {
    let bao = Bao::start().await;
    let token = bao.token();
    let (logged, guard) = Logged::start();
    let provider = open("vault:team/transit/reeve#1", &bao.settings(json!({"token": token}))).await;
    let (key, spelt) = canary_key();
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &key).await.expect("wrapped");
    provider.unwrap(context, &wrapped).await.expect("unwrapped");
    drop(guard);
    let logged = logged.text();
    assert!(logged.contains("HTTP/2") || logged.contains("h2::"), "it is not what it says to be");
    for canary in spelt.iter().chain([&token]) {
        assert_eq!(logged.lines().find(|line| line.contains(canary.as_str())), None, "{canary}");
    }
}

async fn moto_key(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let request = format!(
        "POST / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ncontent-type: application/x-amz-json-1.1\r\n\
         x-amz-target: TrentService.CreateKey\r\ncontent-length: 2\r\nauthorization: AWS4-HMAC-SHA256 \
         Credential=AKID/20260101/eu-west-1/kms/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{answer}: {error}"));
    format!("aws-kms:{}", body["KeyMetadata"]["Arn"].as_str().expect("an ARN"))
}

#[tokio::test]
async fn motos_kms_understands_what_ours_asks() {
    let dir = tempfile::tempdir().expect("a directory");
    let (port, python) = (free_port(), installed().join("python"));
    let number = port.to_string();
    let command = [python.to_str().expect("a path"), "-m", "moto.server", "-H", "127.0.0.1", "-p", &number];
    let _keeper = Keeper::start(&command, dir.path());
    until("moto listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
    let settings = settings(json!({
        "timeout_ms": TIMEOUT_MS,
        "aws": {"endpoint": format!("http://127.0.0.1:{port}"), "access_key_id": "AKID", "secret_access_key": "s"},
    }));
    let [old, new] = [open(&moto_key(port).await, &settings).await, open(&moto_key(port).await, &settings).await];
    opens_only_in_its_context(&*old).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = new_key();
    let wrapped = old.wrap(context, &key).await.expect("wrapped");
    let moved = rewrap_proven(&*new, &*old, context, &wrapped).await.expect("re-wrapped inside");
    assert_eq!(new.unwrap(context, &moved).await.expect("unwrapped").reveal(), key.reveal());
    // Where KMS says IncorrectKeyException, moto says AccessDeniedException: refused for good by either.
    assert!(matches!(
        refused(&old.unwrap(context, &moved).await.expect_err("another key")),
        Refusal::Opening | Refusal::Permission
    ));
    let unknown = open(&old.reference().to_string().replace(":key/", ":key/0"), &settings).await;
    assert_eq!(refused(&unknown.wrap(context, &key).await.expect_err("no such key")), Refusal::UnknownKey);
}
