//! The transit engine of Vault and OpenBao as far as encrypt, decrypt, rewrap and a key's facts go: tokens and what they
//! may, namespaces, versions, associated data. Statuses and texts are those that OpenBao 2.7.2 gives; `peers` asks the
//! real one.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
    time::SystemTime,
};

use serde_json::{Value, json};

use super::server::{Answer, Asked, Fault, Protocol, REMOTE_CANARY, base64, decrypt, encrypt, field};

struct Key {
    versions: Vec<[u8; 32]>,
    min_decryption_version: u64,
}

#[derive(Default)]
pub struct Vault {
    /// Without one, the root.
    pub namespace: Mutex<String>,
    pub is_sealed: Mutex<bool>,
    tokens: Mutex<BTreeSet<String>>,
    keys: Mutex<BTreeMap<String, Key>>,
}

/// A status, and what it says beside.
type Refused = (u16, &'static str);

const MOUNT: &str = "/v1/team/transit/";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while it was held")
}

impl Vault {
    pub fn with_token(token: &str) -> Self {
        let vault = Self::default();
        vault.grant(token);
        vault
    }

    pub fn grant(&self, token: &str) {
        lock(&self.tokens).insert(token.to_owned());
    }

    pub fn revoke(&self, token: &str) {
        lock(&self.tokens).remove(token);
    }

    pub fn make_key(&self, name: &str, versions: usize) {
        let versions = (0..versions).map(|_| rand::random()).collect();
        lock(&self.keys).insert(name.to_owned(), Key { versions, min_decryption_version: 1 });
    }

    pub fn set_min_decryption_version(&self, name: &str, version: u64) {
        lock(&self.keys).get_mut(name).expect("a key").min_decryption_version = version;
    }

    fn seal(key: &Key, version: u64, aad: &[u8], plain: &[u8]) -> Result<(String, u64), Refused> {
        let latest = key.versions.len() as u64;
        let version = if version == 0 { latest } else { version };
        if version > latest {
            return Err((400, "requested version for encryption is higher than the latest key version"));
        }
        if version < key.min_decryption_version {
            return Err((400, "no such key version"));
        }
        let index = usize::try_from(version - 1).expect("a small number");
        Ok((format!("vault:v{version}:{}", base64(&encrypt(&key.versions[index], aad, plain))), version))
    }

    fn open(key: &Key, aad: &[u8], ciphertext: &str) -> Result<Vec<u8>, Refused> {
        let rest = ciphertext.strip_prefix("vault:v").ok_or((400, "invalid ciphertext: no prefix"))?;
        let (version, sealed) = rest.split_once(':').ok_or((400, "invalid ciphertext: wrong number of fields"))?;
        let version: u64 =
            version.parse().map_err(|_| (400, "invalid ciphertext: version number could not be decoded"))?;
        if version > key.versions.len() as u64 {
            return Err((400, "invalid ciphertext: version is too new"));
        }
        if version < key.min_decryption_version.max(1) {
            return Err((400, "ciphertext or signature version is disallowed by policy (too old)"));
        }
        let body = json!({"sealed": sealed});
        let sealed = field(&body, "sealed").ok_or((400, "invalid ciphertext: could not decode base64"))?;
        if sealed.len() < 28 {
            return Err((400, "invalid ciphertext length"));
        }
        let index = usize::try_from(version - 1).expect("a small number");
        decrypt(&key.versions[index], aad, &sealed).ok_or((400, "cipher: message authentication failed"))
    }

    fn run(&self, asked: &Asked) -> Result<Value, Refused> {
        if *lock(&self.is_sealed) {
            return Err((503, "Vault is sealed"));
        }
        let is_known = lock(&self.tokens).contains(asked.header("x-vault-token"));
        if !is_known || asked.header("x-vault-namespace") != *lock(&self.namespace) {
            return Err((403, "permission denied"));
        }
        let path = asked.path.strip_prefix(MOUNT).ok_or((404, "no handler for route. route entry not found."))?;
        let (operation, name) = path.split_once('/').ok_or((404, ""))?;
        let keys = lock(&self.keys);
        // The real one makes a missing key at encrypt, if the token may; this token may not.
        let key = keys.get(name).ok_or(match operation {
            "encrypt" => (403, "permission denied"),
            _ => (400, "encryption key not found"),
        })?;
        let body = asked.json();
        let aad = field(&body, "associated_data").unwrap_or_default();
        let ciphertext = body["ciphertext"].as_str().unwrap_or_default();
        let version = body["key_version"].as_u64().unwrap_or_default();
        match (asked.method.as_str(), operation) {
            ("POST" | "PUT", "encrypt") => {
                let plain = field(&body, "plaintext").ok_or((400, "missing plaintext to encrypt"))?;
                let (ciphertext, key_version) = Self::seal(key, version, &aad, &plain)?;
                Ok(json!({"ciphertext": ciphertext, "key_version": key_version}))
            }
            ("POST" | "PUT", "decrypt") => Ok(json!({"plaintext": base64(&Self::open(key, &aad, ciphertext)?)})),
            // As in the real one: associated data is not looked at.
            ("POST" | "PUT", "rewrap") => {
                let (ciphertext, key_version) = Self::seal(key, version, b"", &Self::open(key, b"", ciphertext)?)?;
                Ok(json!({"ciphertext": ciphertext, "key_version": key_version}))
            }
            ("GET", "keys") => Ok(json!({
                "name": name, "type": "aes256-gcm96", "latest_version": key.versions.len(),
                "min_decryption_version": key.min_decryption_version, "exportable": false,
            })),
            _ => Err((405, "unsupported operation")),
        }
    }
}

fn error((status, text): Refused) -> Answer {
    Answer::new(status, json!({"errors": [text, REMOTE_CANARY]}))
}

impl Protocol for Vault {
    const CONTENT_TYPE: &'static str = "application/json";

    fn answer(&self, asked: &Asked, _: SystemTime) -> Answer {
        match self.run(asked) {
            Ok(data) => {
                let id = uuid::Uuid::new_v4().to_string();
                let body = json!({"request_id": id, "lease_id": "", "renewable": false, "lease_duration": 0, "data": data,
                    "wrap_info": null, "warnings": null, "auth": null});
                Answer::new(200, body)
            }
            Err(refused) => error(refused),
        }
    }

    fn refusal(&self, fault: Fault) -> Answer {
        error(match fault {
            Fault::Throttled => (429, "request path \"transit\": rate limit quota exceeded"),
            Fault::Internal => (500, "internal error"),
            Fault::Away => (503, "Vault is sealed"),
            _ => (403, "1 error occurred:\n\t* permission denied\n\n"),
        })
    }

    fn spoil(&self, fault: Fault, asked: &Asked, answer: &mut Answer) {
        let data = &mut answer.body["data"];
        let is_wrap = data.get("ciphertext").is_some();
        let mut put = |bytes: String| {
            if is_wrap {
                data["ciphertext"] = format!("vault:v{}:{bytes}", asked.json()["key_version"]).into();
            } else {
                data["plaintext"] = bytes.into();
            }
        };
        match fault {
            Fault::Bytes(count) => put(base64(&vec![7; count])),
            Fault::Echo => put(base64(&[vec![7; 20], field(&asked.json(), "plaintext").unwrap_or_default()].concat())),
            Fault::NoBase64 => put(format!("%%{REMOTE_CANARY}%%")),
            _ => {
                data["ciphertext"] =
                    data["ciphertext"].as_str().unwrap_or_default().replace("vault:v", "vault:v9").into()
            }
        }
    }
}
