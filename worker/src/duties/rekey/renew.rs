//! One value under the newest key: opened where it stands, and sealed anew if its key is an older one.
//!
//! Every value is opened, those under the newest key too: a value that was put into another row has the right version
//! and does not open, and a sweep that only looked at versions would call it done. What does not open is a fault of that
//! value, told by its class; what keeps every value from being opened (the keystore or a provider is away, the platform's
//! key is another one) is an error and ends the attempt.
use std::{collections::HashMap, sync::Arc};

use reeve_jobs::{
    seal::{Header, KeyScope, Keyring, KeyringError, Place, keyring::TenantKey, text},
    tenant::TenantId,
};
use zeroize::Zeroizing;

use super::sealed::{Form, SealedColumn, SealedTable, Source};

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
pub enum Turned {
    /// It opens, and is sealed under the target version or a later one.
    Current,
    /// What is to stand in its place.
    Renewed(Vec<u8>),
    /// It does not open; the class of the reason.
    Fault(&'static str),
}

/// The keys of one batch: held no longer than that, so that a key which is destroyed meanwhile is not used for long.
#[derive(Debug)]
pub struct Renewer<'a> {
    keyring: &'a Keyring,
    tenant: &'a TenantId,
    target: Arc<TenantKey>,
    others: HashMap<u32, Result<Arc<TenantKey>, &'static str>>,
}

/// What the stored bytes turn out to be.
enum Found {
    Sealed(Vec<u8>),
    /// Not of our form: of another maker's, if of any.
    Other(&'static str),
}

impl<'a> Renewer<'a> {
    pub async fn new(keyring: &'a Keyring, tenant: &'a TenantId, target: u32) -> Result<Self, KeyringError> {
        let target = keyring.version(tenant, target).await?;
        Ok(Self { keyring, tenant, target, others: HashMap::new() })
    }

    /// # Errors
    /// No value can be opened now, through no fault of this one.
    pub async fn turn(
        &mut self,
        table: &SealedTable,
        column: &SealedColumn,
        row: &str,
        stored: &[u8],
    ) -> Result<Turned, KeyringError> {
        let place = Place { tenant: self.tenant, table: &table.logical, column: &column.name, row };
        let plain = match find(column.form, stored) {
            Found::Sealed(sealed) if sealed.starts_with(b"RV0") => {
                match self.keyring.open(column.purpose, &place, &sealed).await {
                    Ok(plain) => plain,
                    Err(error) => return fault(error).map(Turned::Fault),
                }
            }
            Found::Sealed(sealed) => match self.open(column, &place, &sealed).await? {
                Ok((plain, version)) if version < self.target.version => plain,
                Ok(_) => return Ok(Turned::Current),
                Err(reason) => return Ok(Turned::Fault(reason)),
            },
            Found::Other(reason) => match &column.source {
                Source::Rv1 => return Ok(Turned::Fault(reason)),
                Source::Legacy(reader) => match reader.open(&place, stored) {
                    Ok(plain) => plain,
                    Err(error) => return Ok(Turned::Fault(error.reason())),
                },
            },
        };
        let sealed = self.target.seal(column.purpose, &place, &plain, &mut rand::rng())?;
        Ok(Turned::Renewed(written(column.form, &sealed)))
    }

    async fn open(
        &mut self,
        column: &SealedColumn,
        place: &Place<'_>,
        sealed: &[u8],
    ) -> Result<Result<(Zeroizing<Vec<u8>>, u32), &'static str>, KeyringError> {
        let header = match Header::read(sealed) {
            Ok(header) if header.scope == KeyScope::Tenant => header,
            Ok(_) => return Ok(Err("not under the tenant's key")),
            Err(error) => return Ok(Err(error.reason())),
        };
        let key = match self.key(header.version).await? {
            Ok(key) => key,
            Err(reason) => return Ok(Err(reason)),
        };
        let opened = key.open(column.purpose, place, sealed);
        Ok(opened.map(|plain| (plain, header.version)).map_err(|error| error.reason()))
    }

    async fn key(&mut self, version: u32) -> Result<Result<Arc<TenantKey>, &'static str>, KeyringError> {
        if version == self.target.version {
            return Ok(Ok(self.target.clone()));
        }
        if let Some(known) = self.others.get(&version) {
            return Ok(known.clone());
        }
        let key = match self.keyring.version(self.tenant, version).await {
            Ok(key) => Ok(key),
            Err(error) => Err(fault(error)?),
        };
        self.others.insert(version, key.clone());
        Ok(key)
    }
}

/// Whether the error is the value's own fault; else it is given back.
fn fault(error: KeyringError) -> Result<&'static str, KeyringError> {
    match error {
        KeyringError::Seal(_)
        | KeyringError::Unknown { .. }
        | KeyringError::Destroyed { .. }
        | KeyringError::Shredded(_)
        | KeyringError::NoRoot => Ok(error.reason()),
        other => Err(other),
    }
}

fn find(form: Form, stored: &[u8]) -> Found {
    let is_ours = |bytes: &[u8]| bytes.starts_with(b"RV");
    let from_text = |value: &str| match text::read(value) {
        Ok(sealed) if is_ours(&sealed) => Found::Sealed(sealed),
        Ok(_) => Found::Other("not a sealed value"),
        Err(error) => Found::Other(error.reason()),
    };
    match form {
        Form::Bytea if is_ours(stored) => Found::Sealed(stored.to_vec()),
        Form::Bytea => Found::Other("not a sealed value"),
        Form::Text => std::str::from_utf8(stored).map_or(Found::Other("not a sealed value"), from_text),
        Form::Json | Form::Jsonb => match serde_json::from_slice::<String>(stored) {
            Ok(value) => from_text(&value),
            Err(_) => Found::Other("not a sealed value"),
        },
    }
}

fn written(form: Form, sealed: &[u8]) -> Vec<u8> {
    match form {
        Form::Bytea => sealed.to_vec(),
        Form::Text => text::write(sealed).into_bytes(),
        // The text has no letter that JSON would escape.
        Form::Json | Form::Jsonb => format!("\"{}\"", text::write(sealed)).into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_as_it_was_written_in_each_form() {
        for form in [Form::Bytea, Form::Text, Form::Json, Form::Jsonb] {
            let sealed = b"RV\x01\x01and more".to_vec();
            let stored = written(form, &sealed);
            assert!(matches!(find(form, &stored), Found::Sealed(found) if found == sealed), "{form:?}");
            for other in [&b"plain"[..], b"", b"\"plain\"", b"{\"a\": 1}", b"rv1.", b"\xff\xfe"] {
                assert!(matches!(find(form, other), Found::Other(_)), "{form:?} {other:?}");
            }
        }
    }
}
