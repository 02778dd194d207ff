//! Finds the first broken link of a tenant's chain.
//!
//! Walks from the start (or the first entry that was not pruned), hashes each entry anew, and holds what comes out against
//! the stored hashes, the signed checkpoints and the head. Where entries are missing, a checkpoint must cover them whole and
//! say that all of them were past their time; a stub must have been past its own.
//!
//! What it cannot see: entries after the last checkpoint that were rewritten or cut together with the head, and a tail cut
//! together with its checkpoints. The scheduler makes checkpoints often; those kept outside the database ([`Witness`]) show
//! the latter.
use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    vec,
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use super::{
    chain::{Content, Hash, START, body_hash, kept, link},
    inspect::{self, Signed, Stored},
    keyed::{AuditKey, Checkpoint},
    shipped::Witness,
};

/// Rows a look.
const PAGE: i64 = 5_000;

/// A tenant's chain, judged.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub tenant: String,
    pub entries: u64,
    /// Entries that were pruned and whose hashes are still there.
    pub stubs: u64,
    /// Bodies that were erased, as an entry says.
    pub erased: u64,
    pub checkpoints: u64,
    /// Where the last checkpoint stands: what comes after it is chained, but not yet signed.
    pub signed_to: i64,
    /// The last entry.
    pub seq: i64,
    /// `None`: the chain holds.
    pub broken: Option<Broken>,
}

/// The first broken link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    pub seq: i64,
    pub why: String,
}

/// Judges one chain. Without the key the checkpoints' signatures are taken for good, and the caller must say so. Call it in
/// [`inspect::snapshot`].
pub async fn verify(
    connection: &mut PgConnection,
    tenant: &str,
    key: Option<&AuditKey>,
) -> sqlx::Result<(Report, Option<Checkpoint>)> {
    verify_against(connection, tenant, key, &Witness::default()).await
}

/// [`verify`], with checkpoints that were kept outside the database: all they tell of must still be there.
pub async fn verify_against(
    connection: &mut PgConnection,
    tenant: &str,
    key: Option<&AuditKey>,
    witness: &Witness,
) -> sqlx::Result<(Report, Option<Checkpoint>)> {
    let (head, now) = inspect::head(connection, tenant).await?;
    let checkpoints = inspect::checkpoints(connection, tenant).await?;
    let mut walk = Walk::new(tenant, key, now, checkpoints);
    walk.witnessed = witness.tenants.get(tenant);
    walk.judge(Walk::signatures);
    while walk.report.broken.is_none() {
        let rows = inspect::chain(connection, tenant, walk.looked_to, PAGE).await?;
        let Some(last) = rows.last() else { break };
        walk.looked_to = last.seq;
        for row in &rows {
            walk.judge(|walk| walk.step(row));
        }
    }
    walk.judge(|walk| walk.end(head));
    let next = walk.next_checkpoint();
    Ok((walk.report, next))
}

struct Walk<'a> {
    tenant: &'a str,
    key: Option<&'a AuditKey>,
    now: DateTime<Utc>,
    all: Vec<Signed>,
    /// Those that the walk has not reached.
    ahead: Peekable<vec::IntoIter<Signed>>,
    /// Hashes that entries had, by checkpoints kept outside.
    witnessed: Option<&'a BTreeMap<i64, Vec<Hash>>>,
    report: Report,
    /// The last number that was read, and the last that was judged, with its hash.
    looked_to: i64,
    seq: i64,
    hash: Hash,
    /// Of what no checkpoint covers yet: until when it is kept, `None` once something is for ever.
    unsigned_until: Option<DateTime<Utc>>,
    bodies_missing: BTreeSet<i64>,
    bodies_erased: BTreeSet<i64>,
}

type Judged = Result<(), Broken>;

fn broken(seq: i64, why: impl Into<String>) -> Judged {
    Err(Broken { seq, why: why.into() })
}

impl<'a> Walk<'a> {
    fn new(tenant: &'a str, key: Option<&'a AuditKey>, now: DateTime<Utc>, checkpoints: Vec<Signed>) -> Self {
        let report = Report {
            tenant: tenant.to_owned(),
            entries: 0,
            stubs: 0,
            erased: 0,
            checkpoints: checkpoints.len() as u64,
            signed_to: checkpoints.last().map_or(0, |last| last.checkpoint.seq),
            seq: 0,
            broken: None,
        };
        Self {
            tenant,
            key,
            now,
            ahead: checkpoints.clone().into_iter().peekable(),
            all: checkpoints,
            witnessed: None,
            report,
            looked_to: 0,
            seq: 0,
            hash: START,
            unsigned_until: Some(DateTime::UNIX_EPOCH),
            bodies_missing: BTreeSet::new(),
            bodies_erased: BTreeSet::new(),
        }
    }

    /// Only the first broken link counts: what follows it proves nothing.
    fn judge(&mut self, step: impl FnOnce(&mut Self) -> Judged) {
        if self.report.broken.is_none() {
            self.report.broken = step(self).err();
        }
    }

    fn signatures(&mut self) -> Judged {
        let mut last = 0;
        for Signed { checkpoint, signature } in &self.all {
            let seq = checkpoint.seq;
            if self.key.is_some_and(|key| !key.signed(self.tenant, checkpoint, signature)) {
                return broken(
                    seq,
                    "the checkpoint's signature does not verify: it was changed, or signed with another key",
                );
            }
            if checkpoint.from_seq != last {
                return broken(checkpoint.from_seq, "the checkpoint of this entry is missing");
            }
            last = seq;
        }
        Ok(())
    }

    fn step(&mut self, row: &Stored) -> Judged {
        if row.seq <= self.seq {
            return broken(row.seq, "there is a second entry or stub of this number");
        }
        while row.seq > self.seq + 1 {
            self.skip_pruned()?;
        }
        if row.seq <= self.seq {
            return broken(row.seq, "entries around it were pruned with its checkpoint, and it was not");
        }
        let content = match &row.content {
            Some(content) => self.stub(row, content)?,
            None => self.entry(row)?,
        };
        let hash = link(&self.hash, self.tenant, row.seq, row.at, &row.class, &content);
        if row.hash != hash {
            return broken(row.seq, "its hash does not follow from what it says and the entry before it");
        }
        self.reached(row.seq, hash)?;
        if row.seq > self.report.signed_to {
            let until = kept(&row.class).map(|keep| row.at + keep);
            self.unsigned_until = self.unsigned_until.zip(until).map(|(a, b)| a.max(b));
        }
        Ok(())
    }

    fn stub(&mut self, row: &Stored, content: &[u8]) -> Result<Vec<u8>, Broken> {
        self.report.stubs += 1;
        let was_due = kept(&row.class).is_some_and(|keep| row.at + keep <= self.now);
        if was_due && row.seq <= self.report.signed_to {
            return Ok(content.to_vec());
        }
        Err(Broken { seq: row.seq, why: "the entry was removed before its time; only its hash is left".to_owned() })
    }

    fn entry(&mut self, row: &Stored) -> Result<Vec<u8>, Broken> {
        self.report.entries += 1;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (actor, action, target) = (text(&row.actor), text(&row.action), text(&row.target));
        let stored = row.body_hash.as_deref();
        match (&row.salt, stored) {
            (Some(salt), _) => {
                let body = body_hash(salt, row.reason.as_deref(), row.fields.as_deref().unwrap_or_default());
                if stored != Some(body.as_slice()) {
                    return Err(Broken { seq: row.seq, why: "its reason or its fields were changed".to_owned() });
                }
            }
            (None, Some(_)) => {
                self.bodies_missing.insert(row.seq);
            }
            (None, None) => {}
        }
        if action == "audit.body_erased" {
            self.bodies_erased.extend(target.strip_prefix("audit:").and_then(|seq| seq.parse::<i64>().ok()));
        }
        let content = Content {
            actor: &actor,
            action: &action,
            target: &target,
            job_id: row.job_id,
            attempt: row.attempt,
            trace_id: row.trace_id.as_deref(),
            source_ip_hash: row.source_ip_hash.as_deref(),
            body_hash: stored,
        };
        Ok(content.hash().to_vec())
    }

    /// Goes on at an entry that was there, or whose pruning a checkpoint vouches for.
    fn reached(&mut self, seq: i64, hash: Hash) -> Judged {
        (self.seq, self.hash, self.report.seq) = (seq, hash, seq);
        if let Some(Signed { checkpoint, .. }) = self.ahead.next_if(|next| next.checkpoint.seq == seq)
            && checkpoint.hash != hash
        {
            let since = checkpoint.from_seq + 1;
            return broken(seq, format!("the checkpoint has another hash: entries {since} to {seq} were rewritten"));
        }
        let witnesses = self.witnessed.and_then(|all| all.get(&seq));
        if witnesses.is_some_and(|all| all.iter().any(|witness| *witness != hash)) {
            let why = "a checkpoint kept outside has another hash: it, or entries before it, were rewritten";
            return broken(seq, why);
        }
        Ok(())
    }

    /// The next entry is missing: is all of its checkpoint, and was it due?
    fn skip_pruned(&mut self) -> Judged {
        let missing = self.seq + 1;
        match self.ahead.peek().map(|next| next.checkpoint.clone()) {
            Some(next) if next.from_seq == self.seq && next.keeps_until.is_some_and(|until| until <= self.now) => {
                self.reached(next.seq, next.hash)
            }
            _ => broken(missing, "the entry is missing"),
        }
    }

    fn end(&mut self, head: Option<(i64, Vec<u8>)>) -> Judged {
        while let Some(next) = self.ahead.peek().map(|next| next.checkpoint.seq) {
            let missing = self.seq + 1;
            self.skip_pruned().map_err(|_| Broken {
                seq: missing,
                why: format!("the end was cut off: a checkpoint has entry {next}, the log ends before {missing}"),
            })?;
        }
        if let Some(kept) = self.witnessed.and_then(|all| all.keys().next_back()).filter(|kept| **kept > self.seq) {
            let missing = self.seq + 1;
            return broken(
                missing,
                format!(
                    "the end was cut off, with its checkpoints: one kept outside has entry {kept}, the log ends before {missing}"
                ),
            );
        }
        let (seq, hash) = head.unwrap_or((0, START.to_vec()));
        if seq > self.seq {
            let missing = self.seq + 1;
            return broken(
                missing,
                format!("the end was cut off: the head is at {seq}, the log ends before {missing}"),
            );
        }
        if seq < self.seq || hash != self.hash {
            return broken(self.seq, format!("the head is at {seq} with another hash than the log's end"));
        }
        if let Some(seq) = self.bodies_missing.difference(&self.bodies_erased).next() {
            return broken(*seq, "its reason and fields are gone, and no entry tells of their erasure");
        }
        self.report.erased = self.bodies_missing.len() as u64;
        Ok(())
    }

    /// What a signer would sign now: nothing of a broken chain, nor when all is signed.
    fn next_checkpoint(&self) -> Option<Checkpoint> {
        (self.report.broken.is_none() && self.seq > self.report.signed_to).then_some(Checkpoint {
            from_seq: self.report.signed_to,
            seq: self.seq,
            hash: self.hash,
            keeps_until: self.unsigned_until,
            at: self.now,
        })
    }
}

/// Judges all chains, or one. By tenant, so that a caller can look one up.
pub async fn verify_all(
    connection: &mut PgConnection,
    tenant: Option<&str>,
    key: Option<&AuditKey>,
) -> sqlx::Result<BTreeMap<String, (Report, Option<Checkpoint>)>> {
    verify_all_against(connection, tenant, key, &Witness::default()).await
}

/// [`verify_all`], with checkpoints that were kept outside the database. Tenants that only those know are judged too:
/// theirs is a log that is gone altogether.
pub async fn verify_all_against(
    connection: &mut PgConnection,
    tenant: Option<&str>,
    key: Option<&AuditKey>,
    witness: &Witness,
) -> sqlx::Result<BTreeMap<String, (Report, Option<Checkpoint>)>> {
    let tenants: BTreeSet<_> = match tenant {
        Some(tenant) => BTreeSet::from([tenant.to_owned()]),
        None => inspect::tenants(connection).await?.into_iter().chain(witness.tenants.keys().cloned()).collect(),
    };
    let mut all = BTreeMap::new();
    for tenant in tenants {
        let judged = verify_against(connection, &tenant, key, witness).await?;
        all.insert(tenant, judged);
    }
    Ok(all)
}
