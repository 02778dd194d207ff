//! RVS1, the form of a long object: the head of a field, then the object in chunks (STREAM of Hoang, Reyhanitabar, Rogaway
//! and Vizár, 2015).
//!
//! The head differs from a field's in the low nibble of its suite, which is 2. After it come chunks of 64 KiB of
//! plaintext, each with its tag, AES-256-GCM under the message's key; the last one is shorter or as long, and empty only
//! if the object is. The nonce of a chunk is 7 bytes of the salt (from its 12th on), the chunk's number (u32 BE), and one
//! byte that is 1 for the last chunk and else 0. So chunks cannot be left out, repeated, put in another order or taken
//! from another object, and an object without its last chunk is not complete.
//!
//! Both sides take bytes in pieces of any size and append to a buffer of the caller's, so that they serve `std::io` and
//! an async pipeline alike; they hold one chunk. The opener gives out a chunk once it is proven, so what it gave out is a
//! true beginning of the object: **the object is whole only when [`Opener::finish`] says so.** Who restores from it or
//! shows it before then must be able to take it back.
use rand::CryptoRng;
use zeroize::Zeroizing;

use aes_gcm::aead::AeadInOut;

use super::{
    DataKey, Place, Purpose, SealError,
    field::{HEAD_BYTES, HEADER_BYTES, Header, Message, SALT_BYTES, Suite, TAG_BYTES},
};

/// Plaintext of each chunk but the last.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// What stands before the chunks: [`Header::read_stream`] and [`Opener::start`] take it.
pub const STREAM_HEAD_BYTES: usize = HEAD_BYTES;
const PREFIX_BYTES: usize = 7;
const PREFIX_AT: usize = HEADER_BYTES - 12;

impl Header {
    /// What a stream says of itself. Unproven until [`Opener::start`].
    pub fn read_stream(head: &[u8]) -> Result<Self, SealError> {
        Self::parse(head, Suite::Stream)
    }
}

/// The message's key, and where in it we are.
struct Chunks {
    message: Message,
    prefix: [u8; PREFIX_BYTES],
    /// The number of the next chunk; `None` after the last number that there is.
    next: Option<u32>,
}

impl Chunks {
    fn new(message: Message, head: &[u8]) -> Self {
        let mut prefix = [0; PREFIX_BYTES];
        prefix.copy_from_slice(&head[PREFIX_AT..PREFIX_AT + PREFIX_BYTES]);
        Self { message, prefix, next: Some(0) }
    }

    /// The nonce of the next chunk. A number is never used again: an object that is too long is refused.
    fn nonce(&mut self, last: bool) -> Result<[u8; 12], SealError> {
        let number = self.next.ok_or(SealError::TooLong)?;
        self.next = number.checked_add(1);
        let mut nonce = [0; 12];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.prefix);
        nonce[PREFIX_BYTES..11].copy_from_slice(&number.to_be_bytes());
        nonce[11] = last.into();
        Ok(nonce)
    }
}

/// Seals an object of up to 256 TiB.
pub struct Sealer {
    chunks: Chunks,
    /// Plaintext that is not sealed yet: a full chunk waits until it is known whether it is the last.
    held: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("next", &self.chunks.next).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Appends the head to `out`.
    pub fn start(
        key: &DataKey,
        header: Header,
        purpose: Purpose,
        place: &Place<'_>,
        random: &mut (impl CryptoRng + ?Sized),
        out: &mut Vec<u8>,
    ) -> Self {
        let mut salt = [0; SALT_BYTES];
        random.fill_bytes(&mut salt);
        let header = header.bytes(Suite::Stream, &salt);
        let message = Message::new(key, purpose, &header, place);
        out.extend_from_slice(&header);
        out.extend_from_slice(&message.commitment);
        Self { chunks: Chunks::new(message, &header), held: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES)) }
    }

    /// Takes more of the object, and appends what could be sealed to `out`.
    pub fn update(&mut self, mut plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        while !plain.is_empty() {
            if self.held.len() == CHUNK_BYTES {
                self.seal(false, out)?;
            }
            plain = take(&mut self.held, CHUNK_BYTES, plain);
        }
        Ok(())
    }

    /// Appends the last chunk. Without it the object does not open to its end.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.seal(true, out)
    }

    fn seal(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), SealError> {
        let nonce = self.chunks.nonce(last)?;
        let message = &self.chunks.message;
        let tag = message
            .cipher
            .encrypt_inout_detached(&nonce.into(), &message.context, self.held.as_mut_slice().into())
            .map_err(|_| SealError::TooLong)?;
        out.extend_from_slice(&self.held);
        out.extend_from_slice(&tag);
        self.held.clear();
        Ok(())
    }
}

/// Opens an object, as far as it is proven. After an error it opens no more.
pub struct Opener {
    chunks: Chunks,
    /// Sealed bytes that are not opened yet.
    held: Zeroizing<Vec<u8>>,
    failed: Option<SealError>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Opener");
        shown.field("next", &self.chunks.next).field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Opener {
    /// With the first 64 bytes of the object, and the key that [`Header::read_stream`] finds in them.
    pub fn start(
        key: &DataKey,
        purpose: Purpose,
        place: &Place<'_>,
        head: &[u8; STREAM_HEAD_BYTES],
    ) -> Result<Self, SealError> {
        Header::read_stream(head)?;
        let message = Message::proven(key, purpose, head, place)?;
        let held = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES));
        Ok(Self { chunks: Chunks::new(message, head), held, failed: None })
    }

    /// Takes more of the bytes after the head, and appends the plaintext that is proven to `out`.
    pub fn update(&mut self, mut sealed: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        while !sealed.is_empty() {
            // Something follows, so this chunk is not the last.
            if self.held.len() == CHUNK_BYTES + TAG_BYTES {
                self.open(false, out)?;
            }
            sealed = take(&mut self.held, CHUNK_BYTES + TAG_BYTES, sealed);
        }
        Ok(())
    }

    /// What is left must be the last chunk. Only now is the object known to be whole.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.open(true, out)
    }

    fn open(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), SealError> {
        let opened = self.failed.clone().map_or_else(|| self.open_next(last, out), Err);
        self.failed = opened.clone().err();
        opened
    }

    fn open_next(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), SealError> {
        let first = self.chunks.next == Some(0);
        let nonce = self.chunks.nonce(last)?;
        let (body, tag) = self
            .held
            .as_mut_slice()
            .split_last_chunk_mut::<TAG_BYTES>()
            .ok_or(SealError::Form("it ends inside of a chunk, or before the last"))?;
        // One object has one sealed form: no empty chunk follows a full one.
        if body.is_empty() && !first {
            return Err(SealError::Form("the last chunk is empty"));
        }
        let message = &self.chunks.message;
        message
            .cipher
            .decrypt_inout_detached(&nonce.into(), &message.context, (&mut *body).into(), (&*tag).into())
            .map_err(|_| SealError::Tag)?;
        out.extend_from_slice(body);
        self.held.clear();
        Ok(())
    }
}

/// Fills `held` up to `full` from `bytes`; what is left of them.
fn take<'a>(held: &mut Vec<u8>, full: usize, bytes: &'a [u8]) -> &'a [u8] {
    let (now, later) = bytes.split_at(bytes.len().min(full - held.len()));
    held.extend_from_slice(now);
    later
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
