//! AWS KMS as far as three of its calls go: JSON 1.1 over HTTP, signatures verified, keys that really encrypt, the
//! encryption context bound, states and permissions of keys, and the errors that KMS gives.
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::SystemTime,
};

use serde_json::{Value, json};

use super::{
    server::{Answer, Asked, Fault, Protocol, REMOTE_CANARY, base64, decrypt, encrypt, field},
    sigv4::{self, Login},
};

pub const REGION: &str = "eu-west-1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    /// This login may not use it.
    Forbidden,
}

struct Key {
    material: [u8; 32],
    state: KeyState,
}

pub struct Kms {
    login: Login,
    keys: Mutex<BTreeMap<String, Key>>,
}

/// An error: its code, its status.
type Refused = (&'static str, u16);

impl Kms {
    pub fn new(login: Login) -> Self {
        Self { login, keys: Mutex::default() }
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, Key>> {
        self.keys.lock().expect("no panic while it was held")
    }

    /// Makes a key and returns its ARN.
    pub fn make_key(&self) -> String {
        let arn = format!("arn:aws:kms:{REGION}:111122223333:key/{}", uuid::Uuid::new_v4());
        self.keys().insert(arn.clone(), Key { material: rand::random(), state: KeyState::Enabled });
        arn
    }

    pub fn set_state(&self, arn: &str, state: KeyState) {
        self.keys().get_mut(arn).expect("a key").state = state;
    }

    /// Another key under the same name: what no KMS does, and a restored or forged one might.
    pub fn swap_material(&self, arn: &str) {
        self.keys().get_mut(arn).expect("a key").material = rand::random();
    }

    fn material(&self, arn: &str) -> Result<[u8; 32], Refused> {
        let keys = self.keys();
        let key = keys.get(arn).ok_or(("NotFoundException", 400))?;
        match key.state {
            KeyState::Enabled => Ok(key.material),
            KeyState::Disabled => Err(("DisabledException", 400)),
            KeyState::PendingDeletion => Err(("KMSInvalidStateException", 400)),
            KeyState::Forbidden => Err(("AccessDeniedException", 400)),
        }
    }

    fn seal(&self, arn: &str, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Refused> {
        let sealed = encrypt(&self.material(arn)?, context, plain);
        Ok([&[u8::try_from(arn.len()).expect("short")], arn.as_bytes(), &sealed].concat())
    }

    /// The plaintext, and the key that the blob says it is of.
    fn open(&self, asked_key: Option<&str>, context: &[u8], blob: &[u8]) -> Result<(Vec<u8>, String), Refused> {
        const INVALID: Refused = ("InvalidCiphertextException", 400);
        let (length, rest) = blob.split_first().ok_or(INVALID)?;
        let (arn, sealed) = rest.split_at_checked(usize::from(*length)).ok_or(INVALID)?;
        let arn = std::str::from_utf8(arn).map_err(|_| INVALID)?;
        if !self.keys().contains_key(arn) {
            return Err(INVALID);
        }
        if asked_key.is_some_and(|asked| asked != arn) {
            return Err(("IncorrectKeyException", 400));
        }
        let plain = decrypt(&self.material(arn)?, context, sealed).ok_or(INVALID)?;
        Ok((plain, arn.to_owned()))
    }

    fn run(&self, operation: &str, body: &Value) -> Result<Value, Refused> {
        const VALIDATION: Refused = ("ValidationException", 400);
        let blob = |name: &str| field(body, name).filter(|bytes| !bytes.is_empty()).ok_or(VALIDATION);
        let text = |name: &str| body[name].as_str();
        match operation {
            "Encrypt" => {
                let arn = text("KeyId").ok_or(VALIDATION)?;
                let sealed = self.seal(arn, &context(&body["EncryptionContext"])?, &blob("Plaintext")?)?;
                Ok(json!({
                    "CiphertextBlob": base64(&sealed), "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
                }))
            }
            "Decrypt" => {
                let context = context(&body["EncryptionContext"])?;
                let (plain, arn) = self.open(text("KeyId"), &context, &blob("CiphertextBlob")?)?;
                Ok(json!({"Plaintext": base64(&plain), "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}))
            }
            "ReEncrypt" => {
                let source = context(&body["SourceEncryptionContext"])?;
                let (plain, old) = self.open(text("SourceKeyId"), &source, &blob("CiphertextBlob")?)?;
                let new = text("DestinationKeyId").ok_or(VALIDATION)?;
                let sealed = self.seal(new, &context(&body["DestinationEncryptionContext"])?, &plain)?;
                Ok(json!({
                    "CiphertextBlob": base64(&sealed), "SourceKeyId": old, "KeyId": new,
                    "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
                    "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
                }))
            }
            _ => Err(("UnknownOperationException", 400)),
        }
    }
}

/// A context as bytes: sorted pairs, each part with its length.
fn context(body: &Value) -> Result<Vec<u8>, Refused> {
    let mut out = Vec::new();
    let pairs: BTreeMap<&String, &Value> = body.as_object().into_iter().flatten().collect();
    for (name, value) in pairs {
        for part in [name.as_str(), value.as_str().ok_or(("SerializationException", 400))?] {
            out.extend_from_slice(&u64::try_from(part.len()).expect("short").to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
    }
    Ok(out)
}

fn error((code, status): Refused) -> Answer {
    Answer::new(status, json!({"__type": code, "message": format!("{REMOTE_CANARY}: {code}")}))
}

impl Protocol for Kms {
    const CONTENT_TYPE: &'static str = "application/x-amz-json-1.1";

    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer {
        if let Err(refused) = sigv4::verify(asked, &self.login, REGION, "kms", now) {
            return error((refused.code(), 400));
        }
        let operation = asked.header("x-amz-target").strip_prefix("TrentService.");
        let (Some(operation), Self::CONTENT_TYPE) = (operation, asked.header("content-type")) else {
            return error(("UnknownOperationException", 404));
        };
        match self.run(operation, &asked.json()) {
            Ok(body) => Answer::new(200, body),
            Err(refused) => error(refused),
        }
    }

    fn refusal(&self, fault: Fault) -> Answer {
        error(match fault {
            Fault::Throttled => ("ThrottlingException", 400),
            Fault::Internal => ("KMSInternalException", 500),
            Fault::Away => ("DependencyTimeoutException", 503),
            _ => ("AccessDeniedException", 400),
        })
    }

    fn spoil(&self, fault: Fault, asked: &Asked, answer: &mut Answer) {
        let secret = if answer.body.get("Plaintext").is_some() { "Plaintext" } else { "CiphertextBlob" };
        match fault {
            Fault::Bytes(count) => answer.body[secret] = base64(&vec![7; count]).into(),
            Fault::Echo => answer.body[secret] = asked.json()["Plaintext"].clone(),
            Fault::NoBase64 => answer.body[secret] = format!("%%{REMOTE_CANARY}%%").into(),
            _ => answer.body["KeyId"] = format!("arn:aws:kms:{REGION}:111122223333:key/{REMOTE_CANARY}").into(),
        }
    }
}
