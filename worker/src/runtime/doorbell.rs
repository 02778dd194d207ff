//! One LISTEN connection for the whole process, which wakes the claimer of the lane that was rung for.
//!
//! A ring is a hint, never the truth: a lost one costs at most the claimers' polling interval.
use std::{collections::HashMap, sync::Arc, time::Duration};

use reeve_jobs::queue::Lane;
use sqlx::{PgPool, postgres::PgListener};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The lanes' bells, by notification payload.
pub type Bells = HashMap<String, Arc<Notify>>;

pub fn bells(lanes: &[Lane]) -> Bells {
    lanes.iter().map(|lane| (lane.channel_payload(), Arc::default())).collect()
}

/// Listens until `stop`; reconnects through faults and rings everybody then, for what was missed.
pub async fn listen_until(pool: PgPool, bells: Bells, stop: CancellationToken) {
    let listening = async {
        loop {
            if let Err(error) = listen(&pool, &bells).await {
                tracing::debug!(%error, "the doorbell's connection ended; polling goes on");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    stop.run_until_cancelled(listening).await;
}

async fn listen(pool: &PgPool, bells: &Bells) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen("reeve_jobs").await?;
    bells.values().for_each(|bell| bell.notify_one());
    loop {
        let notification = listener.recv().await?;
        if let Some(bell) = bells.get(notification.payload()) {
            bell.notify_one();
        }
    }
}
