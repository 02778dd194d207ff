//! The sweep of one table: every sealed value of a tenant under the newest version of its key, while the app goes on.
//!
//! ```text
//!   read a batch behind the position (no locks) ──► open and seal outside any transaction
//!        ▲                                              │
//!        │                                              ▼
//!     sleep (Pace) ◄── position, counters and quarantine ◄── UPDATE … WHERE the old value is still there
//! ```
//! A row that lost that race is read again and turned again, a few times; what is left after them is left to the next
//! pass. Passes follow one another until one has nothing to do. A value that does not open is put in quarantine and left
//! as it is. An attempt may end anywhere ([`Ended::Paused`], or killed): the next goes on behind the last batch that
//! committed.
//!
//! While it writes, `reeve.rekey` is `on` in its transaction, so that an app's own triggers can leave out what a change
//! of key is not (`IF current_setting('reeve.rekey', true) = 'on' THEN RETURN NEW; END IF;`). A writer that holds rows for
//! long is waited for no longer than [`Settings::lock_timeout`].
//!
//! What this does not do: make key versions, or decide that one may go.
use std::time::Duration;

use reeve_jobs::{
    TenantContext,
    seal::{Keyring, keyring::CURRENT_FOR},
    tenant::{Directory, Scope, ScopeError},
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    RekeyError,
    ledger::{self, Fault, PassEnd, State, SweepId},
    pace::{self, Pace, Readings},
    renew::{Renewer, Turned},
    rows::{Change, Statements, Stored, Swap},
    sealed::{Route, SealedTable, row_of},
};
use crate::runtime::Progress;

/// How often a row that lost its race is read again within a batch.
const ROUNDS_MAX: u32 = 4;
/// How often a batch that could not get its locks is tried again.
const TRIES_MAX: u32 = 4;
/// How often, and after how long each time, a sweep is asked for that another job is at.
const TAKE_TRIES: u32 = 100;
const TAKE_PAUSE: Duration = Duration::from_millis(200);
/// A batch that changes nothing stores its position only now and then.
pub const QUIET_BATCHES: u32 = 16;
/// Lock not available, deadlock, could not serialize.
const CONTENDED: [&str; 3] = ["55P03", "40P01", "40001"];

/// What can be set.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Rows of a batch, at most.
    pub batch: usize,
    pub pace: Pace,
    pub lock_timeout: Duration,
    /// How long after a new version was made writers may still seal under the one before.
    pub writers_learn: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch: 500,
            pace: Pace::default(),
            lock_timeout: Duration::from_secs(2),
            // And a little for a write that was under way.
            writers_learn: CURRENT_FOR + Duration::from_secs(5),
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A whole pass had nothing to do.
    Done { quarantined: i64 },
    /// Its time is up; to be gone on with after so long.
    Paused(Duration),
}

/// One table's sweep towards one version.
#[derive(Debug)]
pub struct Sweep<'a> {
    pub directory: &'a Directory,
    pub context: &'a TenantContext,
    pub keyring: &'a Keyring,
    pub table: &'a SealedTable,
    pub target: u32,
    pub settings: Settings,
    pub job: Option<Uuid>,
    pub progress: &'a Progress,
}

/// What a batch came to.
#[derive(Debug, Default)]
struct Batch {
    swaps: Vec<Swap>,
    faults: Vec<Fault>,
}

/// Opens the scope that a table's rows are reached by.
pub async fn open(directory: &Directory, context: &TenantContext, route: Route) -> Result<Scope, ScopeError> {
    match route {
        Route::Tenant => Scope::open(directory, context).await,
        Route::Control => Scope::open_control(directory, context).await,
    }
}

impl Sweep<'_> {
    /// Goes on until the table is done or `until` is past.
    pub async fn run(&self, until: Instant) -> Result<Ended, RekeyError> {
        let target = i32::try_from(self.target).unwrap_or(i32::MAX);
        let id = SweepId { table: self.table.name.to_string(), target, holder: Uuid::new_v4() };
        let statements = Statements::of(self.table);
        let mut state = self.take(&id).await?;
        if state.state == "done" {
            self.leave(&id, &state).await?;
            return Ok(Ended::Done { quarantined: state.quarantined });
        }
        let (mut limit, mut quiet) = (pace::BATCH_FIRST.min(self.settings.batch), 0);
        self.begin(&state, None);
        loop {
            let began = Instant::now();
            if began >= until {
                self.leave(&id, &state).await?;
                return Ok(Ended::Paused(Duration::ZERO));
            }
            let (rows, readings) = self.read(&statements, &state, limit).await?;
            let Some(last) = rows.last().map(|row| row.key.clone()) else {
                match self.end_pass(&id, &mut state).await? {
                    PassEnd::Done => return Ok(Ended::Done { quarantined: state.quarantined }),
                    PassEnd::Again(wait) if !wait.is_zero() => {
                        self.leave(&id, &state).await?;
                        return Ok(Ended::Paused(wait));
                    }
                    PassEnd::Again(_) => continue,
                }
            };
            let batch = self.turn(&rows).await?;
            state.position = Some(last);
            let (count, bytes) = (rows.len(), rows.iter().map(Stored::bytes).sum());
            state.scanned += signed(count);
            state.pass_scanned += signed(count);
            quiet = if batch.swaps.is_empty() && batch.faults.is_empty() { quiet + 1 } else { QUIET_BATCHES };
            if quiet >= QUIET_BATCHES {
                self.write(&statements, &id, &mut state, batch).await?;
                quiet = 0;
            }
            self.progress.done(u64::try_from(state.pass_scanned).unwrap_or_default());
            limit = pace::next_batch(count, bytes, self.settings.batch);
            tokio::time::sleep(self.settings.pace.pause(&readings, count, began.elapsed())).await;
        }
    }

    async fn open(&self) -> Result<Scope, ScopeError> {
        open(self.directory, self.context, self.table.route).await
    }

    /// Takes the sweep up. For another job that is at it, it waits a little.
    async fn take(&self, id: &SweepId) -> Result<State, RekeyError> {
        for _ in 0..TAKE_TRIES {
            let mut scope = self.open().await?;
            match ledger::take(&mut scope, id, self.job).await {
                Err(RekeyError::Held) => drop(scope),
                taken => {
                    scope.commit().await?;
                    return taken;
                }
            }
            tokio::time::sleep(TAKE_PAUSE).await;
        }
        Err(RekeyError::Held)
    }

    async fn leave(&self, id: &SweepId, state: &State) -> Result<(), RekeyError> {
        let mut scope = self.open().await?;
        ledger::save(&mut scope, id, state).await?;
        ledger::release(&mut scope, id).await?;
        Ok(scope.commit().await?)
    }

    fn begin(&self, state: &State, total: Option<i64>) {
        let step = if state.pass == 1 { "re-encrypting" } else { "re-encrypting what is left" };
        self.progress.step(step, total.and_then(|total| u64::try_from(total).ok()));
        self.progress.done(u64::try_from(state.pass_scanned).unwrap_or_default());
    }

    async fn read(
        &self,
        statements: &Statements,
        state: &State,
        limit: usize,
    ) -> Result<(Vec<Stored>, Readings), RekeyError> {
        let mut scope = self.open().await?;
        let rows = statements.read(&mut scope, state.position.as_deref(), limit).await?;
        let readings = readings(&mut scope, self.table).await?;
        scope.commit().await?;
        Ok((rows, readings))
    }

    /// Opens every value of these rows, and seals anew those that are under an older key. No transaction is open.
    async fn turn(&self, rows: &[Stored]) -> Result<Batch, RekeyError> {
        let mut renewer = Renewer::new(self.keyring, &self.context.tenant, self.target).await?;
        let mut batch = Batch::default();
        for row in rows {
            let name = row_of(&row.key);
            let mut changes = Vec::with_capacity(self.table.columns.len());
            for (column, stored) in self.table.columns.iter().zip(&row.values) {
                let turned = match stored {
                    Some(old) => renewer.turn(self.table, column, &name, old).await?,
                    // NULL stays NULL.
                    None => Turned::Current,
                };
                changes.push(match (turned, stored) {
                    (Turned::Renewed(new), Some(old)) => Some(Change { old: old.clone(), new }),
                    (Turned::Fault(reason), _) => {
                        batch.faults.push(Fault { column: column.name.clone(), row: name.clone(), reason });
                        None
                    }
                    _ => None,
                });
            }
            if changes.iter().any(Option::is_some) {
                batch.swaps.push(Swap { key: row.key.clone(), values: changes });
            }
        }
        Ok(batch)
    }

    /// Writes a batch, and again what lost its race. The position stands behind it in any case: what is left over makes
    /// another pass.
    async fn write(
        &self,
        statements: &Statements,
        id: &SweepId,
        state: &mut State,
        mut batch: Batch,
    ) -> Result<(), RekeyError> {
        for round in 1.. {
            let meant = batch.swaps.len();
            let changed = self.try_write(statements, id, state, &batch).await?;
            let lost = meant.saturating_sub(usize::try_from(changed).unwrap_or(usize::MAX));
            if lost == 0 {
                break;
            }
            state.raced += signed(lost);
            if round >= ROUNDS_MAX {
                state.pass_moved += signed(lost);
                self.save(id, state).await?;
                break;
            }
            let keys: Vec<_> = batch.swaps.into_iter().map(|swap| swap.key).collect();
            let mut scope = self.open().await?;
            let rows = statements.read_again(&mut scope, &keys).await?;
            scope.commit().await?;
            batch = self.turn(&rows).await?;
        }
        Ok(())
    }

    /// One transaction: the rows, the quarantine, the position. How many rows were changed. Without its locks, after some
    /// tries, it changes none.
    async fn try_write(
        &self,
        statements: &Statements,
        id: &SweepId,
        state: &mut State,
        batch: &Batch,
    ) -> Result<u64, RekeyError> {
        for attempt in 0..TRIES_MAX {
            match self.write_once(statements, id, state, batch).await {
                Err(RekeyError::Scope(ScopeError::Database(error))) if is_contended(&error) => {
                    tokio::time::sleep(Duration::from_millis(50) * 2_u32.pow(attempt)).await;
                }
                other => return other,
            }
        }
        Ok(0)
    }

    async fn write_once(
        &self,
        statements: &Statements,
        id: &SweepId,
        state: &mut State,
        batch: &Batch,
    ) -> Result<u64, RekeyError> {
        let mut scope = self.open().await?;
        let mut next = state.clone();
        let mut changed = 0;
        if !batch.swaps.is_empty() {
            let set = sqlx::query_scalar(
                "-- rekey.settings
                SELECT set_config('reeve.rekey', 'on', true) || set_config('lock_timeout', $1, true)",
            );
            let _: String =
                scope.fetch_value(set.bind(format!("{}ms", self.settings.lock_timeout.as_millis()))).await?;
            changed = statements.swap(&mut scope, &batch.swaps).await?;
        }
        ledger::quarantine(&mut scope, id, &batch.faults).await?;
        next.changed += i64::try_from(changed).unwrap_or(i64::MAX);
        next.pass_moved += i64::try_from(changed).unwrap_or(i64::MAX);
        ledger::save(&mut scope, id, &next).await?;
        scope.commit().await?;
        *state = next;
        Ok(changed)
    }

    async fn save(&self, id: &SweepId, state: &State) -> Result<(), RekeyError> {
        let mut scope = self.open().await?;
        ledger::save(&mut scope, id, state).await?;
        Ok(scope.commit().await?)
    }

    async fn end_pass(&self, id: &SweepId, state: &mut State) -> Result<PassEnd, RekeyError> {
        let mut scope = self.open().await?;
        let end = ledger::end_pass(&mut scope, id, state, self.settings.writers_learn).await?;
        let seen = state.pass_scanned;
        *state = ledger::take(&mut scope, id, self.job).await?;
        if end == PassEnd::Done {
            ledger::release(&mut scope, id).await?;
        }
        scope.commit().await?;
        if end != PassEnd::Done {
            self.begin(state, Some(seen));
        }
        Ok(end)
    }
}

/// What the database says of its load: of the table, and of replicas as far as it shows them to this login.
async fn readings(scope: &mut Scope, table: &SealedTable) -> Result<Readings, ScopeError> {
    let ask = sqlx::query_scalar(
        "-- rekey.readings
        SELECT ARRAY[coalesce(sum(s.n_live_tup), 0), coalesce(sum(s.n_dead_tup), 0),
          (SELECT extract(epoch FROM max(r.replay_lag)) FROM pg_stat_replication r)]::double precision[]
        FROM pg_partition_tree(to_regclass($1)) p JOIN pg_stat_all_tables s ON s.relid = p.relid",
    );
    let said: Vec<Option<f64>> = scope.fetch_value(ask.bind(table.name.sql())).await?;
    let at = |index: usize| said.get(index).copied().flatten();
    Ok(Readings {
        live: at(0).unwrap_or_default(),
        dead: at(1).unwrap_or_default(),
        lag: at(2).and_then(|secs| Duration::try_from_secs_f64(secs).ok()),
    })
}

fn is_contended(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|db| db.code()).is_some_and(|code| CONTENDED.contains(&code.as_ref()))
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
