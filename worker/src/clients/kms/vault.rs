//! The transit engine of HashiCorp Vault and OpenBao: encrypt and decrypt with one version of one key.
//!
//! Flow: the context goes as associated data (base64 of its canonical bytes) → the version is asked for at each encrypt,
//! and looked for in what comes back (`vault:vN:…`), which is stored as it is → before a decrypt the version is read
//! from the stored value, so that nothing of another version is sent.
//!
//! Re-wrapping takes the key through here: `transit/rewrap` knows no associated data (OpenBao 2.7.2 and Vault alike
//! answer "message authentication failed"), and a context that binds is worth more than a key that stays inside.
//!
//! A token is given, or read from a file that an agent renews: once more when it is refused. Logging in is the agent's.
//! `encrypt` makes a missing key where the policy has `create`: give the worker's policy `update` alone.
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reeve_jobs::{
    redact::Redacted,
    seal::{
        DataKey,
        provider::{
            Answer, Capabilities, KeyProvider, KeyRef, Outage, ProviderError, Refusal, TransitKey, WrapContext,
            check_wrapped, key_of,
        },
    },
};
use reqwest::{StatusCode, header::HeaderValue, redirect};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use url::Url;
use zeroize::Zeroizing;

use super::{ATTEMPTS_MAX, KmsSettings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// An answer has a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Of a token's or a CA's file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

pub(super) struct Transit {
    reference: KeyRef,
    key: TransitKey,
    client: reqwest::Client,
    /// With the mount; the operation and the key follow.
    base: String,
    namespace: Option<HeaderValue>,
    token: Token,
    timeout: Duration,
}

/// A token that was given, or the one that the file held last.
struct Token {
    file: Option<PathBuf>,
    held: RwLock<Arc<Redacted<String>>>,
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
    key_version: u32,
}

#[derive(Serialize)]
struct Decrypt<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
    /// Not said by old versions.
    key_version: Option<u32>,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: String,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transit({})", self.reference)
    }
}

impl Token {
    fn of(settings: &super::VaultSettings) -> Result<Self, String> {
        let (file, held) = match (&settings.token, &settings.token_file) {
            (Some(token), None) => (None, token.clone()),
            (None, Some(path)) => (Some(path.clone()), read_token(path)?),
            _ => return Err(format!("[worker] {}", super::SettingsError::VaultToken)),
        };
        if HeaderValue::from_str(held.reveal()).is_err() || held.reveal().is_empty() {
            return Err("[worker] kms.vault.token: not a token: visible ASCII alone".to_owned());
        }
        Ok(Self { file, held: RwLock::new(Arc::new(held)) })
    }

    fn held(&self) -> Arc<Redacted<String>> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again; where there is none, what was given stays.
    fn renew(&self) -> Result<Arc<Redacted<String>>, String> {
        if let Some(path) = &self.file {
            let token = Arc::new(read_token(path)?);
            *self.held.write().unwrap_or_else(PoisonError::into_inner) = token;
        }
        Ok(self.held())
    }
}

/// A small file's text. What is wrong with it is said without repeating any of it.
fn read_text(key: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    let wrong = |what: String| format!("[worker] kms.vault.{key} {}: {what}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| wrong(error.kind().to_string()))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(wrong("no regular file, or a very long one".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.kind().to_string()))?;
    Ok(Zeroizing::new(text))
}

fn read_token(path: &Path) -> Result<Redacted<String>, String> {
    let text = read_text("token_file", path)?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "[worker] kms.vault.token_file {}: holds no token: one line, visible ASCII",
            path.display()
        ));
    }
    Ok(Redacted::new(token.to_owned()))
}

impl Transit {
    pub(super) fn open(key: &TransitKey, settings: &KmsSettings) -> Result<Self, ProviderError> {
        let reference = KeyRef::Vault(key.clone());
        let refused = |what: String| ProviderError::refused(&reference, Refusal::Settings, what);
        let wrong = |error: super::SettingsError| refused(format!("[worker] {error}"));
        settings.check().map_err(wrong)?;
        let address = settings.vault.address().map_err(wrong)?;
        let namespace = settings.vault.namespace.as_deref().map(HeaderValue::from_str);
        Ok(Self {
            client: client(&address, settings).map_err(&refused)?,
            base: format!("{}/v1/{}", address.as_str().trim_end_matches('/'), key.mount),
            namespace: namespace.transpose().map_err(|_| wrong(super::SettingsError::VaultNamespace))?,
            token: Token::of(&settings.vault).map_err(&refused)?,
            timeout: settings.timeout(),
            key: key.clone(),
            reference,
        })
    }

    /// What the ciphertexts of this version begin with.
    fn prefix(&self) -> String {
        format!("vault:v{}:", self.key.version)
    }

    async fn encrypt(&self, context: WrapContext<'_>, key: &DataKey) -> Result<Vec<u8>, ProviderError> {
        let plaintext = Zeroizing::new(BASE64_STANDARD.encode(key.reveal()));
        let body = Encrypt {
            plaintext: &plaintext,
            associated_data: &BASE64_STANDARD.encode(context.bytes()),
            key_version: self.key.version,
        };
        let answer: Encrypted = self.ask("encrypt", &body).await?;
        let version = self.key.version;
        let Some(inner) = answer.ciphertext.strip_prefix(&self.prefix()) else {
            return Err(ProviderError::misanswered(
                &self.reference,
                "it did not wrap by the version that it was asked to",
            ));
        };
        if answer.key_version.is_some_and(|found| found != version) {
            return Err(ProviderError::misanswered(&self.reference, "it names two versions for one wrap"));
        }
        let inner = BASE64_STANDARD
            .decode(inner)
            .map_err(|_| ProviderError::misanswered(&self.reference, "the wrapped key is not in base64"))?;
        check_wrapped(&self.reference, key, &inner)?;
        Ok(answer.ciphertext.into_bytes())
    }

    async fn decrypt(&self, context: WrapContext<'_>, wrapped: &[u8]) -> Result<DataKey, ProviderError> {
        let refused = |class, what: &'static str| ProviderError::refused(&self.reference, class, what);
        let ciphertext = std::str::from_utf8(wrapped)
            .ok()
            .filter(|text| text.starts_with("vault:v"))
            .ok_or_else(|| refused(Refusal::Opening, "it is no wrapped key of a transit engine"))?;
        if !ciphertext.starts_with(&self.prefix()) {
            return Err(refused(Refusal::Version, "it was wrapped by another version of the key"));
        }
        let body = Decrypt { ciphertext, associated_data: &BASE64_STANDARD.encode(context.bytes()) };
        let answer: Decrypted = self.ask("decrypt", &body).await?;
        let plaintext = Zeroizing::new(answer.plaintext);
        let plain = BASE64_STANDARD
            .decode(plaintext.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| ProviderError::misanswered(&self.reference, "the unwrapped key is not in base64"))?;
        key_of(&self.reference, &plain)
    }

    /// Waits for one answer, by the time-out: that bounds the retries and the pauses between them too.
    async fn ask<T: DeserializeOwned>(&self, operation: &str, body: &impl Serialize) -> Result<T, ProviderError> {
        let body = serde_json::to_vec(body)
            .map(Zeroizing::new)
            .map_err(|_| ProviderError::refused(&self.reference, Refusal::Request, "it cannot be written as JSON"))?;
        let answer = tokio::time::timeout(self.timeout, self.attempts(operation, &body)).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(timed_out(&self.reference)))?;
        let envelope: Envelope<T> = serde_json::from_slice(&answer)
            .map_err(|_| ProviderError::misanswered(&self.reference, "the answer is not the engine's JSON"))?;
        Ok(envelope.data)
    }

    async fn attempts(&self, operation: &str, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let url = format!("{}/{operation}/{}", self.base, self.key.name);
        let (mut token, mut was_renewed) = (self.token.held(), false);
        let (mut attempt, mut pause) = (1, FIRST_BACKOFF);
        loop {
            let error = match self.once(&url, &token, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let ProviderError::Refused { class: Refusal::Permission, .. } = error
                && self.token.file.is_some()
                && !was_renewed
            {
                was_renewed = true;
                let refused = |what| ProviderError::refused(&self.reference, Refusal::Settings, what);
                let renewed = self.token.renew().map_err(refused)?;
                if renewed != token {
                    token = renewed;
                    continue;
                }
            }
            if !matches!(error, ProviderError::Unavailable { .. }) || attempt >= ATTEMPTS_MAX {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn once(
        &self,
        url: &str,
        token: &Redacted<String>,
        body: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let mut secret = HeaderValue::from_str(token.reveal()).map_err(|_| {
            ProviderError::refused(&self.reference, Refusal::Settings, "the token is not visible ASCII")
        })?;
        secret.set_sensitive(true);
        let mut request = self
            .client
            .post(url)
            .header("x-vault-token", secret)
            .header("x-vault-request", "true")
            .header("content-type", "application/json")
            .body(body.to_vec());
        if let Some(namespace) = &self.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let unreachable = |_: reqwest::Error| {
            let what = "no connection, or none that lasted until the answer";
            ProviderError::unavailable(&self.reference, Outage::Unreachable, what)
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let mut answer = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX));
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ProviderError::misanswered(&self.reference, "the answer is far too long"));
            }
            answer.extend_from_slice(&chunk);
        }
        match response.status() {
            StatusCode::OK => Ok(answer),
            status => Err(fault(&self.reference, status, &answer)),
        }
    }
}

impl KeyProvider for Transit {
    fn reference(&self) -> &KeyRef {
        &self.reference
    }

    fn wrap<'a>(&'a self, context: WrapContext<'a>, key: &'a DataKey) -> Answer<'a, Vec<u8>> {
        Box::pin(self.encrypt(context, key))
    }

    fn unwrap<'a>(&'a self, context: WrapContext<'a>, wrapped: &'a [u8]) -> Answer<'a, DataKey> {
        Box::pin(self.decrypt(context, wrapped))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { remote: true, rewraps_inside: false }
    }

    fn reload(&self) -> Result<(), ProviderError> {
        let refused = |what| ProviderError::refused(&self.reference, Refusal::Settings, what);
        self.token.renew().map(drop).map_err(refused)
    }
}

#[allow(clippy::disallowed_methods, reason = "the one door to key providers, beside that to tenants' addresses")]
fn client(address: &Url, settings: &KmsSettings) -> Result<reqwest::Client, String> {
    let timeout = settings.timeout();
    let mut builder = reqwest::Client::builder()
        .https_only(address.scheme() == "https")
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .connect_timeout(CONNECT_TIMEOUT.min(timeout));
    if let Some(path) = &settings.vault.ca_file {
        let pem = read_text("ca_file", path)?;
        let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or_else(|| format!("[worker] kms.vault.ca_file {}: no certificates in PEM", path.display()))?;
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|_| "the HTTP client cannot be built (are CA certificates installed?)".to_owned())
}

fn timed_out(key: &KeyRef) -> ProviderError {
    ProviderError::unavailable(key, Outage::TimedOut, "no answer within [worker.kms] timeout_ms")
}

/// What a status other than 200 says, in our words: the engine's own are compared, and not repeated.
fn fault(key: &KeyRef, status: StatusCode, body: &[u8]) -> ProviderError {
    let refused = |class, what: &'static str| ProviderError::refused(key, class, what);
    let away = |class, what: &'static str| ProviderError::unavailable(key, class, what);
    match status.as_u16() {
        429 => return away(Outage::Throttled, "too many requests; it has a rate limit"),
        // It lags behind what the client has seen, or is a standby that cannot forward.
        412 | 301..=308 | 472 | 473 => return away(Outage::Failing, "it is a standby, or lags behind"),
        503 => return away(Outage::Failing, "it is sealed, or has no leader"),
        500..=599 => return ProviderError::unavailable(key, Outage::Failing, format!("it answered {status}")),
        _ => {}
    }
    // Anything between could answer 400, 403 or 404 too: only the engine's JSON is believed.
    let Ok(Errors { errors }) = serde_json::from_slice(body) else {
        return ProviderError::misanswered(key, format!("it answered {} without the engine's JSON", status.as_u16()));
    };
    let says = |piece: &str| errors.iter().any(|error| error.contains(piece));
    match status.as_u16() {
        403 => refused(Refusal::Permission, "the token is not valid, or its policy does not allow it"),
        404 => refused(Refusal::UnknownKey, "nothing is mounted there"),
        400 if says("message authentication failed") || says("invalid ciphertext length") => {
            refused(Refusal::Opening, "another context, another key, or changed bytes")
        }
        400 if says("key not found") || says("policy not found") => {
            refused(Refusal::UnknownKey, "there is no such key")
        }
        400 if says("too old") || says("too new") || says("no such key version") || says("higher than the latest") => {
            refused(Refusal::Version, "the key has no such version, or its policy does not allow it any more")
        }
        400 if says("invalid ciphertext") || says("illegal base64") => {
            refused(Refusal::Opening, "it is no wrapped key of this engine")
        }
        400 | 405 => refused(Refusal::Request, "the request was not understood: is it a transit engine?"),
        other => ProviderError::misanswered(key, format!("it answered {other}, which the engine does not")),
    }
}
