//! The connections themselves; see the module's head for the way through.
//!
//! Two facts hold the bounds. A connection and its permit are one value ([`Open`]), and the permit is let go last. A
//! database's place is given back only after its connection stands among the idle ones, and whoever has a place looks
//! there before connecting, so in use and idle together are never more than its places.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgRow};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::{
    CheckoutError, DatabasesError, Dedicated, Limits, NotOpened, OpenUrl,
    breaker::{Breaker, DELAY_FIRST},
};
use crate::{
    program::db::{self, PROVE_IDLE},
    tenant::TenantId,
};

/// How long a connection's goodbye, or its way back, may take before it is cut.
const GOODBYE: Duration = Duration::from_secs(5);

/// A database under one placement: after a move it is another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantId,
    epoch: i32,
}

/// What is known of a database while it is in use, or while its failures count.
#[derive(Debug)]
struct Database {
    places: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

/// An open connection. The order of the fields is the order in which they go: the permit last.
#[derive(Debug)]
struct Open {
    connection: PgConnection,
    permit: OwnedSemaphorePermit,
}

impl Open {
    /// Says goodbye, and hands on the permit when the connection is gone.
    async fn close(self) -> OwnedSemaphorePermit {
        let Self { connection, permit } = self;
        // Its failure or slowness makes no difference: the socket is closed either way.
        let _ = timeout(GOODBYE, connection.close()).await;
        permit
    }
}

#[derive(Debug)]
struct Idle {
    key: Key,
    open: Open,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    databases: HashMap<Key, Arc<Database>>,
    /// The longest idle first.
    idle: VecDeque<Idle>,
    /// Checkouts that wait for a permit: while there are any, nothing is kept idle.
    waiting: usize,
    /// Whether a task is there that closes what is idle too long.
    swept: bool,
}

#[derive(Debug)]
struct Inner {
    limits: Limits,
    urls: Arc<dyn OpenUrl>,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

/// All dedicated databases of this process. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Databases(Arc<Inner>);

impl Databases {
    pub fn new(limits: Limits, urls: Arc<dyn OpenUrl>) -> Self {
        let permits = Arc::new(Semaphore::new(limits.connections as usize));
        Self(Arc::new(Inner { limits, urls, permits, state: Mutex::default() }))
    }

    /// A connection to this database, with `opening` sent on it, which begins a transaction, and the row that it answered.
    /// Whose database it is has still to be judged.
    pub(in crate::tenant) async fn checkout(
        &self,
        placement: &Dedicated,
        opening: &str,
    ) -> Result<(Checkout, PgRow), CheckoutError> {
        let inner = &self.0;
        let key = Key { tenant: placement.tenant.clone(), epoch: placement.epoch };
        let database = inner.database(&key);
        let deadline = Instant::now() + inner.limits.wait;
        let busy = DatabasesError::Busy { waited: inner.limits.wait };
        database.must_be_up(&key)?;
        // The semaphore is never closed; were it, nobody would be let in, which is the safe side.
        let place = timeout_at(deadline, database.places.clone().acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(busy)?;
        // Whoever had the place may have found it down.
        database.must_be_up(&key)?;
        let checkout = |open, place| {
            let held = Held { open, place, key: key.clone(), database: database.clone() };
            Checkout { held: Some(held), inner: inner.clone(), committed: false }
        };
        let idle = inner.lock().take_idle(&key);
        let place = match idle {
            None => place,
            Some(open) => {
                let mut reused = checkout(open, place);
                match timeout(inner.limits.connect, answer(&mut reused, opening)).await {
                    Ok(Ok(row)) => return Ok((reused, row)),
                    // It lives, and says no.
                    Ok(Err(error @ sqlx::Error::Database(_))) if !is_goodbye(&error) => return Err(error.into()),
                    _ => inner.bury(&key, reused),
                }
            }
        };
        let open = inner.connect(&database, placement, deadline).await?;
        let mut fresh = checkout(open, place);
        match timeout(inner.limits.connect, answer(&mut fresh, opening)).await {
            Ok(Ok(row)) => {
                database.breaker().succeeded();
                Ok((fresh, row))
            }
            Ok(Err(error @ sqlx::Error::Database(_))) if !is_goodbye(&error) => {
                database.breaker().succeeded();
                Err(error.into())
            }
            Ok(Err(error)) => Err(inner.failed(&database, placement, in_words(&error)).into()),
            Err(_) => Err(inner.failed(&database, placement, inner.no_answer()).into()),
        }
    }

    /// Connections that are open or being opened, idle ones included.
    pub fn open_connections(&self) -> usize {
        self.0.limits.connections as usize - self.0.permits.available_permits()
    }

    /// Those of them that nobody uses.
    pub fn idle_connections(&self) -> usize {
        self.0.lock().idle.len()
    }

    /// Databases of which something is kept: a connection, or failures that still count.
    pub fn known_databases(&self) -> usize {
        self.0.lock().databases.len()
    }
}

impl Database {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // A plain value, changed in whole steps: a panic elsewhere leaves nothing half-done.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn must_be_up(&self, key: &Key) -> Result<(), DatabasesError> {
        match self.breaker().shut_for(Instant::now()) {
            Some(after) => Err(DatabasesError::Down { tenant: key.tenant.clone(), after }),
            None => Ok(()),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // As above: each change is whole before the lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self, key: &Key) -> Arc<Database> {
        let mut state = self.lock();
        if state.databases.len() > self.limits.connections as usize * 4 {
            state.forget_unused();
        }
        let made = || {
            let places = Arc::new(Semaphore::new(self.limits.per_database as usize));
            Arc::new(Database { places, breaker: Mutex::default() })
        };
        state.databases.entry(key.clone()).or_insert_with(made).clone()
    }

    /// The server went away under this connection, and so under its idle peers. A new one tells whether it is back.
    fn bury(&self, key: &Key, mut dead: Checkout) -> OwnedSemaphorePermit {
        let peers: Vec<_> = {
            let mut state = self.lock();
            std::iter::from_fn(|| state.take_idle(key)).collect()
        };
        drop(peers);
        dead.release()
    }

    async fn connect(
        &self,
        database: &Database,
        placement: &Dedicated,
        deadline: Instant,
    ) -> Result<Open, DatabasesError> {
        let tenant = || placement.tenant.clone();
        let url = self.urls.open_url(placement).await.map_err(|why| match why {
            NotOpened::Sealed => DatabasesError::Sealed(tenant()),
            NotOpened::Away(where_from) => DatabasesError::Unreachable {
                tenant: tenant(),
                why: format!("the key to its address cannot be had now ({where_from})"),
                after: DELAY_FIRST,
            },
        })?;
        let options = db::options(&url).ok_or_else(|| DatabasesError::Url(tenant()))?;
        let options = options.application_name("reeve-dedicated");
        let permit = self.permit(deadline).await?;
        database
            .breaker()
            .admit(Instant::now(), self.limits.connect)
            .map_err(|after| DatabasesError::Down { tenant: tenant(), after })?;
        let why = match timeout(self.limits.connect, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => return Ok(Open { connection, permit }),
            Ok(Err(error)) => in_words(&error),
            Err(_) => self.no_answer(),
        };
        Err(self.failed(database, placement, why))
    }

    fn no_answer(&self) -> String {
        format!("no answer within {} s", self.limits.connect.as_secs())
    }

    fn failed(&self, database: &Database, placement: &Dedicated, why: String) -> DatabasesError {
        let opened = database.breaker().failed(Instant::now(), rand::random());
        if let Some(delay) = opened {
            tracing::warn!(tenant.id = %placement.tenant, why, secs = delay.as_secs(), "a dedicated database is down");
        }
        DatabasesError::Unreachable { tenant: placement.tenant.clone(), why, after: opened.unwrap_or(DELAY_FIRST) }
    }

    /// The right to open one more connection: a free one, or that of the longest idle connection, which is closed for it.
    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, DatabasesError> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        // Counted before the look: whoever gives a connection back from now on closes it.
        let _waiting = Waiting::new(self);
        let longest_idle = self.lock().idle.pop_front();
        if let Some(idle) = longest_idle {
            return Ok(idle.open.close().await);
        }
        let permit = timeout_at(deadline, self.permits.clone().acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or(DatabasesError::Busy { waited: self.limits.wait })
    }

    /// What a checkout leaves behind: proven idle it is kept, anything else is closed.
    async fn take_back(self: Arc<Self>, held: Held, committed: bool) {
        let Held { mut open, place, key, database } = held;
        let proven = timeout(GOODBYE, async {
            if !committed {
                open.connection.execute("-- databases.roll_back\nROLLBACK").await?;
            }
            open.connection.execute(PROVE_IDLE).await
        });
        let unkept = match proven.await {
            Ok(Ok(_)) => self.keep(key, open),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection to a dedicated database came back unproven and was closed");
                Some(open)
            }
            Err(_) => Some(open),
        };
        if let Some(open) = unkept {
            drop(open.close().await);
        }
        drop((place, database));
    }

    /// Gives it back when somebody waits for its permit.
    fn keep(self: &Arc<Self>, key: Key, open: Open) -> Option<Open> {
        let mut state = self.lock();
        if state.waiting > 0 {
            return Some(open);
        }
        state.idle.push_back(Idle { key, open, since: Instant::now() });
        if !std::mem::replace(&mut state.swept, true) {
            tokio::spawn(self.clone().sweep());
        }
        None
    }

    /// Closes what is idle too long, for as long as anything is idle.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.limits.idle / 4).await;
            let mut too_long = Vec::new();
            let done = {
                let mut state = self.lock();
                while let Some(idle) = state.idle.pop_front_if(|idle| idle.since.elapsed() >= self.limits.idle) {
                    too_long.push(idle);
                }
                state.forget_unused();
                state.swept = !state.idle.is_empty();
                !state.swept
            };
            for idle in too_long {
                drop(idle.open.close().await);
            }
            if done {
                return;
            }
        }
    }
}

impl State {
    /// The one used last: those that are not needed grow old and are closed.
    fn take_idle(&mut self, key: &Key) -> Option<Open> {
        let at = self.idle.iter().rposition(|idle| idle.key == *key)?;
        self.idle.remove(at).map(|idle| idle.open)
    }

    fn forget_unused(&mut self) {
        let now = Instant::now();
        self.databases.retain(|_, database| Arc::strong_count(database) > 1 || !database.breaker().is_forgettable(now));
    }
}

async fn answer(checkout: &mut Checkout, opening: &str) -> sqlx::Result<PgRow> {
    // Made by the scope, with every value in it as a literal; see there.
    sqlx::raw_sql(AssertSqlSafe(opening.to_owned())).fetch_one(checkout.connection()).await
}

/// Whether the server ends the connection with it (class 57: stopped, crashed, starting).
fn is_goodbye(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|db| db.code()).is_some_and(|code| code.starts_with("57P"))
}

/// What kind of failure it was. Not its text, which may name hosts, users and databases.
fn in_words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(error) => error.kind().to_string(),
        sqlx::Error::Tls(_) => "TLS was not agreed on".to_owned(),
        sqlx::Error::Database(db) => match db.code().as_deref() {
            Some(code) if code.starts_with("28") => format!("the login was refused ({code})"),
            Some("3D000") => "there is no such database (3D000)".to_owned(),
            Some("53300") => "it has too many connections (53300)".to_owned(),
            Some(code) => format!("it answered with error {code}"),
            None => "it answered with an error".to_owned(),
        },
        _ => "the connection broke off".to_owned(),
    }
}

/// One more that waits for a permit, for as long as this lives.
struct Waiting<'a>(&'a Inner);

impl<'a> Waiting<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.lock().waiting += 1;
        Self(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[derive(Debug)]
struct Held {
    open: Open,
    place: OwnedSemaphorePermit,
    key: Key,
    database: Arc<Database>,
}

/// A connection to one tenant's database, in use, inside a transaction. Dropped, it is rolled back and given back; a future
/// that was dropped half-way on it makes no difference.
#[derive(Debug)]
pub struct Checkout {
    /// Taken when it is dropped.
    held: Option<Held>,
    inner: Arc<Inner>,
    committed: bool,
}

impl Checkout {
    #[allow(clippy::expect_used, reason = "only drop takes it")]
    pub(in crate::tenant) fn connection(&mut self) -> &mut PgConnection {
        &mut self.held.as_mut().expect("held until dropped").open.connection
    }

    /// Told when the transaction is over; otherwise it is rolled back.
    pub(in crate::tenant) fn committed(mut self) {
        self.committed = true;
    }

    /// Closes the connection, and keeps its place.
    #[allow(clippy::expect_used, reason = "only drop takes it")]
    fn release(&mut self) -> OwnedSemaphorePermit {
        let Held { open, place, .. } = self.held.take().expect("held until dropped");
        drop(open);
        place
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(self.inner.clone().take_back(held, self.committed))),
            // The process ends: the socket is closed, and the server rolls back.
            Err(_) => drop(held),
        }
    }
}
