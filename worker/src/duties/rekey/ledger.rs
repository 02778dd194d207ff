//! What a sweep remembers: `reeve.key_sweeps` and `reeve.key_quarantine`, in the database that has the swept rows.
//!
//! A batch's changes and the place where it ended commit together ([`save`]). Whoever takes a sweep up becomes its holder;
//! another job that wants it waits for as long as the holder lives. A holder that lost it (its own job goes on elsewhere, or
//! it was silent for long) finds that out with its next batch, keeps nothing of it and leaves, so position and counters are
//! always of one hand. Nothing depends on that for the rows themselves: they are changed by compare-and-swap.
use std::time::Duration;

use reeve_jobs::tenant::{Rows, Scope, ScopeError, TenantRow};
use uuid::Uuid;

use super::RekeyError;

/// A holder that stored nothing for so long is gone. Longer than [`super::sweep::QUIET_BATCHES`] with the longest pause.
const SILENT_SECS: f64 = 120.0;

/// Of which sweep a statement speaks.
#[derive(Debug, Clone)]
pub struct SweepId {
    pub table: String,
    pub target: i32,
    pub holder: Uuid,
}

/// How far it is. What one hand stores whole.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct State {
    tenant_id: String,
    pub state: String,
    /// The job that this state is of.
    pub job_id: Option<Uuid>,
    pub pass: i32,
    pub position: Option<Vec<String>>,
    pub pass_scanned: i64,
    pub pass_moved: i64,
    pub scanned: i64,
    pub changed: i64,
    pub raced: i64,
    pub quarantined: i64,
}

impl TenantRow for State {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

/// A value that does not open.
#[derive(Debug, Clone)]
pub struct Fault {
    pub column: String,
    pub row: String,
    pub reason: &'static str,
}

/// Takes a sweep up where it stands, or begins it. One that is done is begun anew for another job: who asks again wants
/// to know again.
pub async fn take(scope: &mut Scope, id: &SweepId, job: Option<Uuid>) -> Result<State, RekeyError> {
    let tenant = scope.tenant().as_str().to_owned();
    let insert = sqlx::query_scalar(
        "-- key_sweeps.begin
        INSERT INTO reeve.key_sweeps (tenant_id, table_name, target_version, job_id, holder) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING RETURNING tenant_id",
    );
    scope
        .write(
            insert.bind(tenant.clone()).bind(id.table.clone()).bind(id.target).bind(job).bind(id.holder),
            Rows::AtMost(1),
        )
        .await?;
    // A pass begins when its first batch is read, and not when the one before it ended.
    let take = sqlx::query_as(
        "-- key_sweeps.take
        UPDATE reeve.key_sweeps s SET holder = $5, job_id = $4, updated_at = now(), reason = NULL,
          state = CASE WHEN a.anew THEN 'running' ELSE s.state END, ended_at = CASE WHEN a.anew THEN NULL ELSE s.ended_at END,
          position = CASE WHEN a.anew THEN NULL ELSE s.position END,
          pass = CASE WHEN a.anew THEN 1 ELSE s.pass END,
          pass_scanned = CASE WHEN a.anew THEN 0 ELSE s.pass_scanned END,
          pass_moved = CASE WHEN a.anew THEN 0 ELSE s.pass_moved END,
          pass_began_at = CASE WHEN a.anew OR s.position IS NULL THEN now() ELSE s.pass_began_at END
        FROM (SELECT x.state = 'refused' OR x.state = 'done' AND x.job_id IS DISTINCT FROM $4 AS anew,
                     x.state = 'running' AND x.holder IS NOT NULL AND x.job_id IS DISTINCT FROM $4
                       AND x.updated_at > now() - make_interval(secs => $6) AS held
              FROM reeve.key_sweeps x WHERE x.tenant_id = $1 AND x.table_name = $2 AND x.target_version = $3 FOR UPDATE) a
        WHERE NOT a.held AND s.tenant_id = $1 AND s.table_name = $2 AND s.target_version = $3
        RETURNING s.tenant_id, s.state, s.job_id, s.pass, s.position, s.pass_scanned, s.pass_moved, s.scanned, s.changed,
          s.raced, s.quarantined",
    );
    let taken = take.bind(tenant).bind(id.table.clone()).bind(id.target).bind(job).bind(id.holder).bind(SILENT_SECS);
    scope.fetch_optional(taken).await?.ok_or(RekeyError::Held)
}

/// Stores how far it is. Refused to one who is not the holder any more.
pub async fn save(scope: &mut Scope, id: &SweepId, state: &State) -> Result<(), RekeyError> {
    let save = sqlx::query_scalar(
        "-- key_sweeps.save
        UPDATE reeve.key_sweeps SET pass = $5, position = $6, pass_scanned = $7, pass_moved = $8, scanned = $9, changed = $10,
          raced = $11, quarantined = $12, updated_at = now()
        WHERE tenant_id = $1 AND table_name = $2 AND target_version = $3 AND holder = $4 RETURNING tenant_id",
    )
    .bind(scope.tenant().as_str().to_owned())
    .bind(id.table.clone())
    .bind(id.target)
    .bind(id.holder)
    .bind(state.pass)
    .bind(state.position.clone())
    .bind(state.pass_scanned)
    .bind(state.pass_moved)
    .bind(state.scanned)
    .bind(state.changed)
    .bind(state.raced)
    .bind(state.quarantined);
    held(scope.write(save, Rows::AtMost(1)).await?)
}

/// Leaves the sweep for whoever comes next.
pub async fn release(scope: &mut Scope, id: &SweepId) -> Result<(), RekeyError> {
    let release = sqlx::query_scalar(
        "-- key_sweeps.release
        UPDATE reeve.key_sweeps SET holder = NULL WHERE tenant_id = $1 AND table_name = $2 AND target_version = $3
          AND holder = $4 RETURNING tenant_id",
    );
    let release = release.bind(scope.tenant().as_str().to_owned()).bind(id.table.clone()).bind(id.target);
    held(scope.write(release.bind(id.holder), Rows::AtMost(1)).await?)
}

fn held(changed: u64) -> Result<(), RekeyError> {
    if changed == 1 { Ok(()) } else { Err(RekeyError::TakenOver) }
}

/// Puts values in quarantine; those that are there already are seen again.
pub async fn quarantine(scope: &mut Scope, id: &SweepId, faults: &[Fault]) -> Result<(), ScopeError> {
    if faults.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Fault) -> String| faults.iter().map(of).collect::<Vec<_>>();
    let put = sqlx::query_scalar(
        "-- key_quarantine.put
        INSERT INTO reeve.key_quarantine AS q (tenant_id, table_name, column_name, row_key, reason)
        SELECT $1, $2, f.* FROM unnest($3::text[], $4::text[], $5::text[]) AS f
        ON CONFLICT ON CONSTRAINT key_quarantine_pkey DO UPDATE SET reason = excluded.reason, last_seen_at = now()
        RETURNING q.tenant_id",
    )
    .bind(scope.tenant().as_str().to_owned())
    .bind(id.table.clone())
    .bind(column(|fault| fault.column.clone()))
    .bind(column(|fault| fault.row.clone()))
    .bind(column(|fault| fault.reason.to_owned()));
    scope.write(put, Rows::Exactly(faults.len() as u64)).await?;
    Ok(())
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassEnd {
    /// Nothing was left to do, and every writer knew the target version before it began.
    Done,
    /// Another pass is needed: after this time, when a writer may have been behind.
    Again(Duration),
}

#[derive(sqlx::FromRow)]
struct Ended {
    tenant_id: String,
    done: bool,
    wait_secs: f64,
}

impl TenantRow for Ended {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

/// Ends a pass. What is in quarantine and was not met by it is gone or opens again, and is taken out. `learn` is how long
/// a writer may go on sealing under the version before.
pub async fn end_pass(scope: &mut Scope, id: &SweepId, state: &State, learn: Duration) -> Result<PassEnd, RekeyError> {
    save(scope, id, state).await?;
    let release = sqlx::query_scalar(
        "-- key_quarantine.release
        DELETE FROM reeve.key_quarantine q USING reeve.key_sweeps s
        WHERE s.tenant_id = $1 AND s.table_name = $2 AND s.target_version = $3
          AND q.tenant_id = s.tenant_id AND q.table_name = s.table_name AND q.last_seen_at < s.pass_began_at
        RETURNING q.tenant_id",
    );
    let tenant = scope.tenant().as_str().to_owned();
    scope.write(release.bind(tenant.clone()).bind(id.table.clone()).bind(id.target), Rows::AtMost(u64::MAX)).await?;
    let end = sqlx::query_as(
        "-- key_sweeps.end_pass
        UPDATE reeve.key_sweeps s SET state = CASE WHEN e.done THEN 'done' ELSE s.state END,
          ended_at = CASE WHEN e.done THEN now() END, pass = s.pass + CASE WHEN e.done THEN 0 ELSE 1 END,
          position = NULL, pass_scanned = CASE WHEN e.done THEN s.pass_scanned ELSE 0 END, pass_moved = 0,
          pass_began_at = CASE WHEN e.done THEN s.pass_began_at ELSE now() END, updated_at = now(),
          quarantined = (SELECT count(*) FROM reeve.key_quarantine q WHERE q.tenant_id = $1 AND q.table_name = $2)
        FROM (SELECT x.pass_moved = 0 AND x.pass_began_at >= x.began_at + make_interval(secs => $5) AS done,
                     CASE WHEN x.pass_moved > 0 THEN 0
                          ELSE greatest(0, extract(epoch FROM x.began_at - now()) + $5)::double precision END AS wait_secs
              FROM reeve.key_sweeps x WHERE x.tenant_id = $1 AND x.table_name = $2 AND x.target_version = $3) e
        WHERE s.tenant_id = $1 AND s.table_name = $2 AND s.target_version = $3 AND s.holder = $4
        RETURNING s.tenant_id, e.done, e.wait_secs",
    );
    let ended: Option<Ended> = scope
        .fetch_optional(
            end.bind(tenant).bind(id.table.clone()).bind(id.target).bind(id.holder).bind(learn.as_secs_f64()),
        )
        .await?;
    let ended = ended.ok_or(RekeyError::TakenOver)?;
    let wait = Duration::try_from_secs_f64(ended.wait_secs).unwrap_or_default();
    Ok(if ended.done { PassEnd::Done } else { PassEnd::Again(wait) })
}

/// Stores that a table is not swept, and why: a key version with such a table behind it is not to be retired.
pub async fn refuse(
    scope: &mut Scope,
    table: &str,
    target: i32,
    job: Option<Uuid>,
    why: &str,
) -> Result<(), ScopeError> {
    let refuse = sqlx::query_scalar(
        "-- key_sweeps.refuse
        INSERT INTO reeve.key_sweeps AS s (tenant_id, table_name, target_version, job_id, state, reason)
        VALUES ($1, $2, $3, $4, 'refused', left($5, 1000))
        ON CONFLICT ON CONSTRAINT key_sweeps_pkey DO UPDATE SET state = 'refused', reason = excluded.reason,
          job_id = excluded.job_id, holder = NULL, ended_at = NULL, updated_at = now() RETURNING s.tenant_id",
    )
    .bind(scope.tenant().as_str().to_owned())
    .bind(table.to_owned())
    .bind(target)
    .bind(job)
    .bind(why.to_owned());
    scope.write(refuse, Rows::Exactly(1)).await?;
    Ok(())
}

/// Notes that this job made this version, so that its later attempts make no other.
pub async fn note_rotation(scope: &mut Scope, table: &str, target: i32, job: Uuid) -> Result<(), ScopeError> {
    let note = sqlx::query_scalar(
        "-- key_sweeps.note_rotation
        INSERT INTO reeve.key_sweeps AS s (tenant_id, table_name, target_version, job_id, rotated_by) VALUES ($1, $2, $3, $4, $4)
        ON CONFLICT ON CONSTRAINT key_sweeps_pkey DO UPDATE SET rotated_by = excluded.rotated_by RETURNING s.tenant_id",
    );
    let note = note.bind(scope.tenant().as_str().to_owned()).bind(table.to_owned()).bind(target).bind(job);
    scope.write(note, Rows::Exactly(1)).await?;
    Ok(())
}

/// The version that this job made, if it made one.
pub async fn rotated(scope: &mut Scope, job: Uuid) -> Result<Option<i32>, ScopeError> {
    let ask = sqlx::query_scalar(
        "-- key_sweeps.rotated
        SELECT max(target_version) FROM reeve.key_sweeps WHERE tenant_id = $1 AND rotated_by = $2",
    );
    scope.fetch_value(ask.bind(scope.tenant().as_str().to_owned()).bind(job)).await
}
