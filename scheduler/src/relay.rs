//! Holds ready jobs out to the workers in Redis: keeps each lane's window (`reeve_jobs::queue::window`) filled.
//!
//! ```text
//!   lanes with ready jobs ─► their tenants, page by page ─► who is short of ids? (Redis) ─► their first ready ids ─► offer
//! ```
//! A pass asks Redis first and reads of PostgreSQL only what is short: under half of a tenant's share. The share is bounded
//! by [`LANE_IDS`] among the tenants there are, so that a tenant with a million jobs has a thousand ids there at most, and
//! one that has a single job has that one. What is paused, or at its cap, is not offered.
//!
//! Ids alone are handed over, never a payload, and offering again what was offered changes nothing: any number of schedulers
//! do this at a time, and one that is killed half-way leaves a window half full. When Redis is not there the workers claim
//! from PostgreSQL, and this is tried again.
use std::collections::HashMap;

use reeve_jobs::{
    JobId,
    queue::{
        Lane,
        window::{Offer, TENANT_IDS_MAX, Window},
    },
    redact::Redacted,
};
use sqlx::{PgPool, Row};

use crate::service::{Service, ServiceError};

/// Ids of a lane, roughly.
pub const LANE_IDS: usize = 20_000;
/// A tenant's share, however many tenants there are.
pub const TENANT_IDS_MIN: usize = 8;
/// Tenants a statement.
const PAGE: i32 = 500;
/// Pages of a lane a pass; the next one goes on behind them.
const PAGES: usize = 20;

/// Where a lane's pass goes on, and how many tenants the last whole round met.
#[derive(Debug, Clone, Default)]
struct Round {
    cursor: String,
    met: usize,
    last: usize,
}

/// Fills the windows. Keeps nothing that another could not find out.
#[derive(Debug)]
pub struct Relay {
    url: Redacted<String>,
    /// Only these; all where none is named.
    queues: Vec<String>,
    window: Option<Window>,
    rounds: HashMap<Lane, Round>,
}

impl Relay {
    pub fn new(url: Redacted<String>, queues: Vec<String>) -> Self {
        Self { url, queues, window: None, rounds: HashMap::new() }
    }

    /// One pass over all lanes. Returns how many ids were offered.
    pub async fn run_once(&mut self, pool: &PgPool) -> Result<usize, ServiceError> {
        let lanes = lanes(pool).await?;
        let lanes: Vec<_> =
            lanes.into_iter().filter(|lane| self.queues.is_empty() || self.queues.contains(&lane.queue)).collect();
        if lanes.is_empty() {
            return Ok(0);
        }
        let window = match &self.window {
            Some(window) => window.clone(),
            None => self.window.insert(Window::open(self.url.reveal()).await?).clone(),
        };
        let mut offered = 0;
        let mut first = Ok(());
        for lane in lanes {
            let round = self.rounds.entry(lane.clone()).or_default();
            match fill(pool, &window, &lane, round).await {
                Ok(n) => offered += n,
                Err(error) => {
                    // The next pass opens another: this one's end may have vanished without a word. A lane whose keys somebody
                    // spoilt keeps none of the others waiting.
                    self.window = None;
                    let of_the_database = matches!(error, ServiceError::Database(_));
                    first = first.and(Err(error));
                    if of_the_database {
                        break;
                    }
                }
            }
        }
        first.map(|()| offered)
    }
}

async fn lanes(pool: &PgPool) -> sqlx::Result<Vec<Lane>> {
    let rows = sqlx::query("-- relay.lanes\nSELECT queue, region FROM reeve.window_lanes()").fetch_all(pool).await?;
    rows.iter().map(|row| Ok(Lane { queue: row.try_get(0)?, region: row.try_get(1)? })).collect()
}

async fn fill(pool: &PgPool, window: &Window, lane: &Lane, round: &mut Round) -> Result<usize, ServiceError> {
    let mut offered = 0;
    for _ in 0..PAGES {
        let tenants: Vec<String> =
            sqlx::query_scalar("-- relay.tenants\nSELECT unnest(reeve.window_tenants($1, $2, $3, $4))")
                .bind(&lane.queue)
                .bind(&lane.region)
                .bind(&round.cursor)
                .bind(PAGE)
                .fetch_all(pool)
                .await?;
        round.met += tenants.len();
        let share = share(round.last.max(round.met));
        let sizes = window.sizes(lane, &tenants).await?;
        let short: Vec<_> =
            tenants.iter().zip(sizes).filter(|(_, size)| size * 2 < share).map(|(tenant, _)| tenant.clone()).collect();
        if !short.is_empty() {
            let offers = offers(pool, lane, &short, share).await?;
            window.offer(lane, &offers).await?;
            offered += offers.iter().map(|offer| offer.ids.len()).sum::<usize>();
        }
        match tenants.last() {
            Some(last) if tenants.len() == usize::try_from(PAGE).unwrap_or(usize::MAX) => round.cursor.clone_from(last),
            _ => {
                *round = Round { last: round.met, ..Round::default() };
                break;
            }
        }
    }
    Ok(offered)
}

/// How many ids each of so many tenants may have.
fn share(tenants: usize) -> usize {
    (LANE_IDS / tenants.max(1)).clamp(TENANT_IDS_MIN, TENANT_IDS_MAX)
}

async fn offers(pool: &PgPool, lane: &Lane, tenants: &[String], share: usize) -> sqlx::Result<Vec<Offer>> {
    let rows = sqlx::query("-- relay.jobs\nSELECT tenant_id, weight, id, score FROM reeve.window_jobs($1, $2, $3, $4)")
        .bind(&lane.queue)
        .bind(&lane.region)
        .bind(tenants)
        .bind(i32::try_from(share).unwrap_or(i32::MAX))
        .fetch_all(pool)
        .await?;
    let mut offers: Vec<Offer> = Vec::with_capacity(tenants.len());
    for row in &rows {
        let (tenant, id): (&str, JobId) = (row.try_get(0)?, row.try_get(2)?);
        if offers.last().is_none_or(|last| last.tenant != tenant) {
            offers.push(Offer { tenant: tenant.to_owned(), weight: row.try_get(1)?, ids: Vec::new() });
        }
        if let Some(offer) = offers.last_mut() {
            offer.ids.push((row.try_get(3)?, id));
        }
    }
    Ok(offers)
}

impl Service for Relay {
    const NAME: &'static str = "relay";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        let offered = self.run_once(pool).await?;
        if offered > 0 {
            tracing::trace!(offered, "ready jobs held out");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_bounded_whoever_is_there() {
        assert_eq!(share(0), TENANT_IDS_MAX);
        assert_eq!(share(1), TENANT_IDS_MAX);
        assert_eq!(share(100), 200);
        assert_eq!(share(1_000_000), TENANT_IDS_MIN);
    }
}
