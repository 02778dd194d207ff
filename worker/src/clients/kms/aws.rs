//! AWS KMS, by AWS's own SDK: Encrypt, Decrypt and ReEncrypt with one key.
//!
//! Flow: the context goes as the encryption context `{tenant, version, region}`, which KMS binds to the ciphertext and
//! shows in its log → the key's ARN is pinned at every call, so that a ciphertext of another key is refused by KMS → what
//! KMS says it did is compared with what was asked for.
//!
//! The region is the ARN's. Re-wrapping happens inside KMS where both keys are of one region, else the key passes through
//! here. Aliases and whatever the environment says of endpoints are not looked at. KMS's automatic rotation is invisible
//! from here: it keeps all old material under one ARN, so retire a key by a new ARN.
use std::{collections::HashMap, fmt, time::Duration};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, SharedCredentialsProvider, http::HttpResponse, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    primitives::Blob,
};
use reeve_jobs::seal::{
    DataKey,
    provider::{
        Answer, AwsKey, Capabilities, KeyProvider, KeyRef, Outage, ProviderError, Refusal, WrapContext, check_wrapped,
        key_of,
    },
};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

use super::{ATTEMPTS_MAX, KmsSettings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

pub(super) struct AwsKms {
    reference: KeyRef,
    key: AwsKey,
    client: Client,
    timeout: Duration,
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AwsKms({})", self.reference)
    }
}

impl AwsKms {
    pub(super) async fn open(key: &AwsKey, settings: &KmsSettings) -> Result<Self, ProviderError> {
        let reference = KeyRef::AwsKms(key.clone());
        let refused = |error: super::SettingsError| {
            ProviderError::refused(&reference, Refusal::Settings, format!("[worker] {error}"))
        };
        settings.check().map_err(refused)?;
        let region = Region::new(key.region().to_owned());
        let credentials = match settings.aws.credentials().map_err(refused)? {
            Some((id, secret, token)) => SharedCredentialsProvider::new(Credentials::new(
                id,
                secret.reveal(),
                token.map(|token| token.reveal().clone()),
                None,
                "reeve.toml",
            )),
            None => {
                SharedCredentialsProvider::new(DefaultCredentialsChain::builder().region(region.clone()).build().await)
            }
        };
        let timeout = settings.timeout();
        let mut config = aws_sdk_kms::Config::builder()
            // Said, not "latest": an update of the SDK is to change no behaviour by itself.
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(region)
            .credentials_provider(credentials)
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT.min(timeout)).build())
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(ATTEMPTS_MAX)
                    .with_initial_backoff(FIRST_BACKOFF)
                    .with_max_backoff(BACKOFF_MAX),
            );
        if let Some(endpoint) = settings.aws.endpoint().map_err(refused)? {
            if endpoint.scheme() == "http" {
                // On this machine, for tests: a proxy of the environment would be shown the keys.
                config = config.http_client(aws_smithy_http_client::Builder::new().build_http());
            }
            config = config.endpoint_url(endpoint.as_str().trim_end_matches('/'));
        }
        Ok(Self { client: Client::from_conf(config.build()), key: key.clone(), timeout, reference })
    }

    /// Waits for one answer, by the time-out: that bounds credentials, connection, retries and the pauses between them.
    async fn ask<T, E>(
        &self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, ProviderError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        // At its finest level the SDK logs the bodies of answers; a key may be in one.
        let call = call.with_subscriber(NoSubscriber::default());
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map_err(|error| fault(&self.reference, &error)),
            Err(_elapsed) => Err(timed_out(&self.reference)),
        }
    }

    /// Whether KMS used the key that it was told to.
    fn check_key(&self, asked: &AwsKey, found: Option<&str>) -> Result<(), ProviderError> {
        if found == Some(asked.arn()) {
            return Ok(());
        }
        Err(ProviderError::misanswered(&self.reference, "it used another key than the one it was asked to"))
    }

    async fn encrypt(&self, context: WrapContext<'_>, key: &DataKey) -> Result<Vec<u8>, ProviderError> {
        let call = self
            .client
            .encrypt()
            .key_id(self.key.arn())
            .plaintext(Blob::new(key.reveal().as_slice()))
            .set_encryption_context(Some(encryption_context(context)))
            .send();
        let answer = self.ask(call).await?;
        self.check_key(&self.key, answer.key_id())?;
        let wrapped = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        check_wrapped(&self.reference, key, &wrapped)?;
        Ok(wrapped)
    }

    async fn decrypt(&self, context: WrapContext<'_>, wrapped: &[u8]) -> Result<DataKey, ProviderError> {
        let call = self
            .client
            .decrypt()
            .key_id(self.key.arn())
            .ciphertext_blob(Blob::new(wrapped))
            .set_encryption_context(Some(encryption_context(context)))
            .send();
        let answer = self.ask(call).await?;
        self.check_key(&self.key, answer.key_id())?;
        let plain = zeroize::Zeroizing::new(answer.plaintext.map(Blob::into_inner).unwrap_or_default());
        key_of(&self.reference, &plain)
    }

    async fn re_encrypt(
        &self,
        old: &AwsKey,
        context: WrapContext<'_>,
        wrapped: &[u8],
    ) -> Result<Vec<u8>, ProviderError> {
        let call = self
            .client
            .re_encrypt()
            .ciphertext_blob(Blob::new(wrapped))
            .source_key_id(old.arn())
            .set_source_encryption_context(Some(encryption_context(context)))
            .destination_key_id(self.key.arn())
            .set_destination_encryption_context(Some(encryption_context(context)))
            .send();
        let answer = self.ask(call).await?;
        self.check_key(old, answer.source_key_id())?;
        self.check_key(&self.key, answer.key_id())?;
        let rewrapped = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        if rewrapped.len() <= DataKey::BYTES {
            let what = "the wrapped key is shorter than any cipher makes it";
            return Err(ProviderError::misanswered(&self.reference, what));
        }
        Ok(rewrapped)
    }
}

impl KeyProvider for AwsKms {
    fn reference(&self) -> &KeyRef {
        &self.reference
    }

    fn wrap<'a>(&'a self, context: WrapContext<'a>, key: &'a DataKey) -> Answer<'a, Vec<u8>> {
        Box::pin(self.encrypt(context, key))
    }

    fn unwrap<'a>(&'a self, context: WrapContext<'a>, wrapped: &'a [u8]) -> Answer<'a, DataKey> {
        Box::pin(self.decrypt(context, wrapped))
    }

    fn rewrap<'a>(
        &'a self,
        old: &'a dyn KeyProvider,
        context: WrapContext<'a>,
        wrapped: &'a [u8],
    ) -> Answer<'a, Vec<u8>> {
        Box::pin(async move {
            match old.reference() {
                KeyRef::AwsKms(source) if source.region() == self.key.region() => {
                    self.re_encrypt(source, context, wrapped).await
                }
                _ => self.encrypt(context, &old.unwrap(context, wrapped).await?).await,
            }
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { remote: true, rewraps_inside: true }
    }
}

fn encryption_context(context: WrapContext<'_>) -> HashMap<String, String> {
    HashMap::from([
        ("tenant".to_owned(), context.tenant.as_str().to_owned()),
        ("version".to_owned(), context.version.to_string()),
        ("region".to_owned(), context.region.to_owned()),
    ])
}

fn timed_out(key: &KeyRef) -> ProviderError {
    ProviderError::unavailable(key, Outage::TimedOut, "no answer within [worker.kms] timeout_ms")
}

/// What went wrong, in our words: KMS's own message is not repeated.
fn fault<E>(key: &KeyRef, error: &SdkError<E, HttpResponse>) -> ProviderError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => timed_out(key),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => timed_out(key),
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => not_sent(key, error),
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            match error.code() {
                // With 200 there is no error to read: the body is no answer of KMS's.
                _ if status < 300 => ProviderError::misanswered(key, "the answer is not KMS's JSON"),
                Some(code) => by_code(key, code, status),
                None => by_status(key, status),
            }
        }
        _ => ProviderError::misanswered(key, "the answer is not whole, or not KMS's JSON"),
    }
}

/// Faults before anything was sent: credentials, or the connection.
fn not_sent(key: &KeyRef, error: &(dyn std::error::Error + 'static)) -> ProviderError {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        match inner.downcast_ref() {
            Some(CredentialsError::CredentialsNotLoaded(_)) => {
                let what = "no credentials; give [worker.kms.aws] access_key_id and secret_access_key, or run where \
                            AWS's own tools find some";
                return ProviderError::refused(key, Refusal::Settings, what);
            }
            Some(CredentialsError::InvalidConfiguration(_)) => {
                let what = "AWS's own settings (profile, environment) give no credentials: they are not in order";
                return ProviderError::refused(key, Refusal::Settings, what);
            }
            Some(_) => return ProviderError::unavailable(key, Outage::Unreachable, "who gives credentials is away"),
            None => cause = inner.source(),
        }
    }
    ProviderError::unavailable(key, Outage::Unreachable, "no connection, or none that lasted until the answer")
}

/// By the code of the error. Codes common to all of AWS's services are among them.
fn by_code(key: &KeyRef, code: &str, status: u16) -> ProviderError {
    let refused = |class, what: &'static str| ProviderError::refused(key, class, what);
    let away = |class, what: &'static str| ProviderError::unavailable(key, class, what);
    match code {
        "IncorrectKeyException" => refused(Refusal::Opening, "it was wrapped by another key"),
        "InvalidCiphertextException" => refused(Refusal::Opening, "another context, another key, or changed bytes"),
        "NotFoundException" | "InvalidArnException" => refused(Refusal::UnknownKey, "there is no such key"),
        "DisabledException" => refused(Refusal::Disabled, "the key is disabled"),
        "KMSInvalidStateException" | "KmsInvalidStateException" => refused(
            Refusal::Disabled,
            "the key's state does not allow it: disabled, to be deleted, or its store is away",
        ),
        "InvalidKeyUsageException" => refused(Refusal::Request, "the key is not for ENCRYPT_DECRYPT, symmetric"),
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" | "OptInRequired" | "InvalidGrantTokenException" => {
            refused(Refusal::Permission, "these credentials may not use this key so")
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => {
            refused(Refusal::Permission, "the credentials are wrong, or this machine's clock is")
        }
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" | "RequestTimeTooSkewed" => {
            refused(Refusal::Permission, "the credentials have expired, or this machine's clock is wrong")
        }
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "TooManyRequestsException"
        | "LimitExceededException"
        | "SlowDown" => away(Outage::Throttled, "too many requests; KMS has a quota a second"),
        "DependencyTimeoutException"
        | "KMSInternalException"
        | "KmsInternalException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "InternalError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => away(Outage::Failing, "KMS has a fault of its own"),
        "RequestTimeout" | "RequestTimeoutException" => timed_out(key),
        _ => by_status(key, status),
    }
}

/// Of an error without a code, or with one that is not known here.
fn by_status(key: &KeyRef, status: u16) -> ProviderError {
    match status {
        429 => ProviderError::unavailable(key, Outage::Throttled, "too many requests"),
        500..=599 => ProviderError::unavailable(key, Outage::Failing, format!("it answered {status}")),
        // KMS refuses with 400 and says why; any other status is of somebody between.
        400 => ProviderError::refused(key, Refusal::Request, "the request was refused with 400"),
        _ => ProviderError::misanswered(key, format!("it answered {status}, which KMS does not")),
    }
}
