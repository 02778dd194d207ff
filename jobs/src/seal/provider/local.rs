//! Platform keys that lie on this machine: `env:` and `file:`.
//!
//! Flow: 32 bytes in base64 are read once, at start → tenant keys are wrapped by RV1 (scope platform, purpose wrap) with
//! the platform version in the header → a wrap of another version is refused before anything is tried. A file is read
//! again when the worker is told to ([`KeyProvider::reload`]).
//!
//! A file must be this user's or root's, and nobody else's to read: judged on the opened file, so that nobody puts another
//! in its place between the look and the read. Symbolic links are followed (mounted secrets are links); it is the file at
//! their end that is judged. Its directories are not: who may write there can take the key away, but not show another
//! for it, which is another user's or does not open anything.
use std::{
    borrow::Cow,
    fmt,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::{Answer, Capabilities, KeyProvider, KeyRef, ProviderError, Refusal, WrapContext, key_of};
use crate::seal::{
    field::{self, Header, KeyScope, Purpose},
    key::DataKey,
};

/// Base64 of 32 bytes has 44 characters; the rest is for line ends.
const FILE_BYTES_MAX: u64 = 256;
const MAKE_ONE: &str = "it must hold 32 bytes in base64; make them with `openssl rand -base64 32`";

/// A platform key that is held in memory while the program runs.
pub struct LocalProvider {
    reference: KeyRef,
    version: u32,
    key: RwLock<Arc<DataKey>>,
}

impl fmt::Debug for LocalProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalProvider({} as version {})", self.reference, self.version)
    }
}

impl LocalProvider {
    /// Reads the key that `reference` names, to serve as platform version `version`.
    pub fn open(reference: &KeyRef, version: u32) -> Result<Self, ProviderError> {
        let key = read(reference)?;
        Ok(Self { reference: reference.clone(), version, key: RwLock::new(Arc::new(key)) })
    }

    /// With a key that is at hand.
    #[cfg(feature = "testing")]
    pub fn with_key(reference: &KeyRef, version: u32, key: DataKey) -> Self {
        Self { reference: reference.clone(), version, key: RwLock::new(Arc::new(key)) }
    }

    /// A panic while the lock was held leaves a whole key behind it: there is nothing to be half done.
    fn key(&self) -> Arc<DataKey> {
        Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn wrap_now(&self, context: WrapContext<'_>, key: &DataKey) -> Result<Vec<u8>, ProviderError> {
        let header = Header { scope: KeyScope::Platform, version: self.version };
        context
            .at(|place| {
                field::seal(&self.key(), header, Purpose::Wrap, place, key.reveal().as_slice(), &mut rand::rng())
            })
            .map_err(|error| ProviderError::refused(&self.reference, Refusal::Request, error.reason()))
    }

    fn unwrap_now(&self, context: WrapContext<'_>, wrapped: &[u8]) -> Result<DataKey, ProviderError> {
        let refused = |class, what: &'static str| ProviderError::refused(&self.reference, class, what);
        let header = Header::read(wrapped).map_err(|error| refused(Refusal::Opening, error.reason()))?;
        if header.scope != KeyScope::Platform {
            return Err(refused(Refusal::Opening, "it is no wrapped key, but another sealed value"));
        }
        if header.version != self.version {
            let (found, own) = (header.version, self.version);
            let what = format!("the key was wrapped by platform version {found}, and this is {own}");
            return Err(ProviderError::refused(&self.reference, Refusal::Version, what));
        }
        let plain = context
            .at(|place| field::open(&self.key(), Purpose::Wrap, place, wrapped))
            .map_err(|error| refused(Refusal::Opening, error.reason()))?;
        key_of(&self.reference, &plain)
    }
}

impl KeyProvider for LocalProvider {
    fn reference(&self) -> &KeyRef {
        &self.reference
    }

    fn wrap<'a>(&'a self, context: WrapContext<'a>, key: &'a DataKey) -> Answer<'a, Vec<u8>> {
        Box::pin(async move { self.wrap_now(context, key) })
    }

    fn unwrap<'a>(&'a self, context: WrapContext<'a>, wrapped: &'a [u8]) -> Answer<'a, DataKey> {
        Box::pin(async move { self.unwrap_now(context, wrapped) })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { remote: false, rewraps_inside: false }
    }

    fn reload(&self) -> Result<(), ProviderError> {
        if let KeyRef::Env(_) = self.reference {
            return Ok(()); // a process keeps the environment that it was started with
        }
        let key = read(&self.reference)?;
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(())
    }
}

fn read(reference: &KeyRef) -> Result<DataKey, ProviderError> {
    let refused = |what: Cow<'static, str>| ProviderError::refused(reference, Refusal::Settings, what);
    match reference {
        KeyRef::Env(name) => {
            let text = std::env::var_os(name).ok_or_else(|| refused("the environment variable is not set".into()))?;
            let text = Zeroizing::new(text.into_encoded_bytes());
            parse(&text).ok_or_else(|| refused(MAKE_ONE.into()))
        }
        KeyRef::File(path) => {
            let text = read_file(path).map_err(refused)?;
            parse(&text).ok_or_else(|| refused(MAKE_ONE.into()))
        }
        KeyRef::AwsKms(_) | KeyRef::Vault(_) => Err(refused("it is no key of this machine".into())),
    }
}

fn parse(text: &[u8]) -> Option<DataKey> {
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim_ascii()).ok()?);
    let bytes: [u8; DataKey::BYTES] = bytes.as_slice().try_into().ok()?;
    Some(DataKey::from_bytes(Zeroizing::new(bytes)))
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Cow<'static, str>> {
    // Without the flag, opening a named pipe waits until somebody writes to it.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| format!("the file cannot be opened: {}", error.kind()))?;
    judge(&file, rustix::process::geteuid().as_raw())?;
    // With room for all of it, so that no half is left behind by growing.
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(FILE_BYTES_MAX).unwrap_or_default() + 1));
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| format!("the file cannot be read: {}", error.kind()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(MAKE_ONE.into());
    }
    Ok(text)
}

/// Whether an opened file is fit to hold a key, for a process of that user.
pub(super) fn judge(file: &File, user: u32) -> Result<(), Cow<'static, str>> {
    let metadata = file.metadata().map_err(|error| format!("the file cannot be judged: {}", error.kind()))?;
    if !metadata.is_file() {
        return Err("it is no regular file".into());
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if ![0o400, 0o600].contains(&mode) {
        return Err(format!("the file has mode {mode:04o}, and may have 0400 or 0600 alone: `chmod 0400`").into());
    }
    let owner = metadata.uid();
    if owner != user && owner != 0 {
        return Err(format!("the file belongs to user {owner}; it must be root's, or that of user {user}").into());
    }
    Ok(())
}
