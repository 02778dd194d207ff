//! Checkpoints kept outside the database: one line of JSON each, appended to a file that is then shipped somewhere else.
//!
//! ```text
//!   sign (scheduler) ──append, fsync──► file ──► another machine ──► read ──► verify::verify_against
//! ```
//! Whoever rules the database can cut a log together with its checkpoints, and nothing in it tells. A line out of their
//! reach does. Each is signed, so a line can be lost but not made up. A line that a crash cut short is passed over, and
//! counted: it was stored nowhere else, for a checkpoint is written here first.
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    chain::Hash,
    keyed::{AuditKey, Checkpoint},
};

/// Why the file was not taken for a witness.
#[derive(Debug, thiserror::Error)]
pub enum ShippedError {
    #[error("{file}: cannot be read: {source}")]
    Read { file: String, source: io::Error },
    #[error(
        "{file}:{line}: not a checkpoint: {why}; each line is as `reeve-scheduler` appends it to [scheduler] audit_checkpoint_file"
    )]
    Form { file: String, line: usize, why: String },
    #[error(
        "{file}:{line}: the signature of tenant \"{tenant}\", entry {seq}, does not verify: the line was changed, or signed with another key than [ops] audit_key"
    )]
    Signature { file: String, line: usize, tenant: String, seq: i64 },
}

/// One line: a checkpoint with its tenant and signature. Bytes are in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipped {
    pub tenant: String,
    pub from_seq: i64,
    pub seq: i64,
    pub hash: String,
    pub keeps_until: Option<DateTime<Utc>>,
    pub at: DateTime<Utc>,
    pub signature: String,
}

impl Shipped {
    pub fn sign(tenant: &str, checkpoint: &Checkpoint, key: &AuditKey) -> Self {
        Self {
            tenant: tenant.to_owned(),
            from_seq: checkpoint.from_seq,
            seq: checkpoint.seq,
            hash: hex(&checkpoint.hash),
            keeps_until: checkpoint.keeps_until,
            at: checkpoint.at,
            signature: hex(&key.sign(tenant, checkpoint)),
        }
    }

    /// The hash that entry `seq` had, if this key signed the line.
    fn verified(&self, key: &AuditKey) -> Option<Hash> {
        let (hash, signature) = (unhex(&self.hash)?, unhex(&self.signature)?);
        let Self { from_seq, seq, keeps_until, at, .. } = *self;
        key.signed(&self.tenant, &Checkpoint { from_seq, seq, hash, keeps_until, at }, &signature).then_some(hash)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Hash> {
    let mut bytes = Hash::default();
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What a file bears witness of: for each tenant, the hashes that its entries had.
#[derive(Debug, Default)]
pub struct Witness {
    pub(super) tenants: BTreeMap<String, BTreeMap<i64, Vec<Hash>>>,
    /// Lines that were cut short.
    pub torn: usize,
}

impl Witness {
    /// Reads a file of checkpoints, and believes only lines that this key signed.
    pub fn read(path: &Path, key: &AuditKey) -> Result<Self, ShippedError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ShippedError::Read { file: file.clone(), source })?;
        let mut witness = Self::default();
        for (index, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let (file, line) = (file.clone(), index + 1);
            let shipped: Shipped = match serde_json::from_str(text) {
                Ok(shipped) => shipped,
                Err(error) if error.is_eof() => {
                    witness.torn += 1;
                    continue;
                }
                Err(error) => return Err(ShippedError::Form { file, line, why: error.to_string() }),
            };
            let Shipped { tenant, seq, .. } = &shipped;
            let Some(hash) = shipped.verified(key) else {
                return Err(ShippedError::Signature { file, line, tenant: tenant.clone(), seq: *seq });
            };
            witness.tenants.entry(tenant.clone()).or_default().entry(*seq).or_default().push(hash);
        }
        Ok(witness)
    }
}

/// Appends a line for each and returns when they are on the disk. A file that ends within a line gets an end of line first.
pub fn append(path: &Path, all: &[Shipped]) -> io::Result<()> {
    let is_new = !path.exists();
    let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(path)?;
    let mut text = String::new();
    if file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            text.push('\n');
        }
    }
    for shipped in all {
        text.push_str(&serde_json::to_string(shipped)?);
        text.push('\n');
    }
    // In one write: two schedulers on one file do not mix their lines.
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    if is_new && let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: char) -> AuditKey {
        AuditKey::from_base64(&format!("{first}AECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")).expect("32 bytes")
    }

    fn line(seq: i64) -> Shipped {
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time");
        let hash = [u8::try_from(seq).expect("small"); 32];
        Shipped::sign("t", &Checkpoint { from_seq: 0, seq, hash, keeps_until: Some(at), at }, &key('A'))
    }

    #[test]
    fn what_was_appended_is_read_and_a_line_cut_short_costs_only_itself() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoints.jsonl");
        append(&path, &[line(3), line(4)]).expect("appended");
        let whole = std::fs::read_to_string(&path).expect("the file");
        // As a crash leaves it: the second line ends in its middle.
        std::fs::write(&path, &whole[..whole.len() - 40]).expect("cut");
        append(&path, &[line(5)]).expect("appended");
        let witness = Witness::read(&path, &key('A')).expect("a witness");
        assert_eq!(witness.torn, 1);
        assert_eq!(witness.tenants["t"], BTreeMap::from([(3, vec![[3; 32]]), (5, vec![[5; 32]])]));
    }

    #[test]
    fn a_line_that_was_changed_or_signed_by_another_is_refused_by_its_number() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoints.jsonl");
        append(&path, &[line(3), Shipped { seq: 9, ..line(4) }]).expect("appended");
        let said = Witness::read(&path, &key('A')).expect_err("changed").to_string();
        assert!(said.contains("checkpoints.jsonl:2: ") && said.contains("entry 9"), "{said}");
        let said = Witness::read(&path, &key('Q')).expect_err("another key").to_string();
        assert!(said.contains("checkpoints.jsonl:1: ") && said.contains("another key"), "{said}");
        std::fs::write(&path, "{\"tenant\": 7}\n").expect("written");
        let said = Witness::read(&path, &key('A')).expect_err("no checkpoint").to_string();
        assert!(said.contains(":1: not a checkpoint"), "{said}");
    }
}
