//! `webhook.deliver`: one event to one endpoint, signed afresh on each attempt.
//!
//! 2xx alone is success. 410 disables the endpoint. Everything else is tried again by the schedule, or later when the
//! receiver asked for it. Each attempt is recorded with its class, never with the receiver's body.
use std::time::Duration;

use bytes::Bytes;
use reeve_jobs::{
    TenantContext, audit,
    job::{ClaimedJob, Outcome},
    kinds::DeliverWebhook,
    tenant::{Rows, Scope, ScopeError, TenantRow},
};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use super::{
    schedule,
    secrets::{self, InForce, SecretError},
    sign,
};
use crate::{
    clients::http::{EndpointUrl, SendResult, Sent},
    environment::Environment,
    keys::KEY_PAUSE,
};

/// What must be known to send.
#[derive(sqlx::FromRow)]
struct Delivery {
    tenant_id: String,
    state: String,
    event_id: String,
    body: String,
    endpoint_id: Uuid,
    url: String,
    endpoint_state: String,
}

impl TenantRow for Delivery {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

/// An attempt, ready to be sent.
struct Prepared {
    id: Uuid,
    delivery: Delivery,
    url: EndpointUrl,
    secrets: InForce,
}

pub async fn run(
    env: &Environment,
    job: &ClaimedJob,
    context: &TenantContext,
    payload: &DeliverWebhook,
) -> Result<Outcome, ScopeError> {
    let prepared = match prepare(env, context, payload.delivery_id).await? {
        Ok(prepared) => prepared,
        Err(outcome) => return Ok(outcome),
    };
    let at = env.clock.now();
    let sent = send(env, &prepared).await;
    record(env, job, context, &prepared, &sent, at).await?;
    Ok(outcome(job, &sent))
}

/// Reads the delivery in the tenant's scope; `Err` is the outcome of a job with nothing to send.
async fn prepare(
    env: &Environment,
    context: &TenantContext,
    id: Uuid,
) -> Result<Result<Prepared, Outcome>, ScopeError> {
    let mut scope = Scope::open_control(&env.directory, context).await?;
    let find = sqlx::query_as(
        "-- webhook_deliveries.find
        SELECT d.tenant_id, d.state, d.event_id, v.body, d.endpoint_id, e.url, e.state AS endpoint_state
        FROM reeve.webhook_deliveries d
        JOIN reeve.webhook_events v ON v.tenant_id = d.tenant_id AND v.id = d.event_id
        JOIN reeve.webhook_endpoints e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
        WHERE d.id = $1",
    );
    let Some(delivery) = scope.fetch_optional::<Delivery>(find.bind(id)).await? else {
        let ask = sqlx::query_scalar("-- webhook_deliveries.is_foreign\nSELECT reeve.delivery_is_foreign($1)");
        return Ok(Err(if scope.fetch_value::<bool>(ask.bind(id)).await? {
            Outcome::quarantine(format!("the payload names delivery {id}, which is another tenant's"))
        } else {
            Outcome::cancel(format!("delivery {id} does not exist any more"))
        }));
    };
    match delivery.state.as_str() {
        // An earlier attempt of this job got this far and was not settled.
        "delivered" => return Ok(Err(Outcome::Done)),
        "cancelled" => return Ok(Err(Outcome::cancel("the delivery was cancelled"))),
        // A failed one whose job runs again was given new attempts by an operator.
        _ => {}
    }
    if delivery.endpoint_state != "enabled" {
        end(&mut scope, id, "cancelled").await?;
        scope.commit().await?;
        return Ok(Err(Outcome::cancel("the endpoint is disabled")));
    }
    let url = match EndpointUrl::parse(&delivery.url, &env.url_policy) {
        Ok(url) => url,
        Err(refused) => {
            end(&mut scope, id, "failed").await?;
            scope.commit().await?;
            return Ok(Err(Outcome::dead(format!("the endpoint's URL is refused: {refused}"))));
        }
    };
    let why = match secrets::in_force(&mut scope, &env.keyring, delivery.endpoint_id).await {
        Ok(Some(secrets)) => return Ok(Ok(Prepared { id, delivery, url, secrets })),
        Ok(None) => format!("endpoint {} has no secret in force", delivery.endpoint_id),
        Err(SecretError::Scope(error)) => return Err(error),
        // The key may be had later; nothing is decided about the delivery before that, and no attempt is counted.
        Err(SecretError::Unreadable { source, .. }) if source.is_transient() => {
            let why = format!("the endpoint's secret cannot be opened now: {}", source.reason());
            return Ok(Err(Outcome::Snooze { why, after: KEY_PAUSE }));
        }
        Err(error) => error.to_string(),
    };
    end(&mut scope, id, "failed").await?;
    scope.commit().await?;
    Ok(Err(Outcome::dead(why)))
}

async fn send(env: &Environment, prepared: &Prepared) -> Sent {
    let Prepared { delivery, url, secrets, .. } = prepared;
    let now = env.clock.now();
    let timestamp = now.timestamp();
    let signature = sign::signature_header(&secrets.secrets, &delivery.event_id, timestamp, delivery.body.as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [
        ("webhook-id", delivery.event_id.as_str()),
        ("webhook-timestamp", timestamp.to_string().as_str()),
        ("webhook-signature", signature.as_str()),
    ] {
        // Ids are checked by the table, the rest are digits and base64: all visible ASCII.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    // The client's own total deadline is the shorter one; this bounds it should its policy be changed.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    env.webhooks.send(url, headers, Bytes::from(delivery.body.clone()), deadline, now).await
}

/// Whether no further attempt will follow.
fn is_last(job: &ClaimedJob) -> bool {
    job.attempt >= job.attempts_max
}

const GONE: u16 = 410;

async fn record(
    env: &Environment,
    job: &ClaimedJob,
    context: &TenantContext,
    prepared: &Prepared,
    sent: &Sent,
    at: chrono::DateTime<chrono::Utc>,
) -> Result<(), ScopeError> {
    let Prepared { id, delivery, secrets, .. } = prepared;
    let mut scope = Scope::open_control(&env.directory, context).await?;
    // A lost answer of the database makes this attempt run again, under the same number: one row is enough.
    let tenant = context.tenant.as_str().to_owned();
    let insert = sqlx::query_scalar(
        "-- webhook_attempts.insert
        INSERT INTO reeve.webhook_attempts (tenant_id, delivery_id, job_id, attempt, at, duration_ms, result, status,
                                            response_bytes, secret_version)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING RETURNING tenant_id",
    )
    .bind(tenant.clone())
    .bind(*id)
    .bind(job.id.0)
    .bind(job.attempt)
    .bind(at)
    .bind(i32::try_from(sent.duration.as_millis()).unwrap_or(i32::MAX))
    .bind(sent.result.as_str())
    .bind(sent.status.map(i32::from))
    .bind(i32::try_from(sent.response_bytes).unwrap_or(i32::MAX))
    .bind(secrets.version);
    scope.write(insert, Rows::AtMost(1)).await?;
    let state = match sent.result {
        SendResult::Delivered => "delivered",
        _ if is_last(job) || sent.status == Some(GONE) => "failed",
        _ => "pending",
    };
    let update = sqlx::query_scalar(
        "-- webhook_deliveries.record
        UPDATE reeve.webhook_deliveries SET attempts = attempts + 1, last_status = $3, state = $4,
               ended_at = CASE WHEN $4 = 'pending' THEN NULL ELSE now() END
        WHERE tenant_id = $1 AND id = $2 RETURNING tenant_id",
    );
    let update = update.bind(tenant.clone()).bind(*id).bind(sent.status.map(i32::from)).bind(state);
    scope.write(update, Rows::Exactly(1)).await?;
    if sent.status == Some(GONE) {
        let disable = sqlx::query_scalar(
            "-- webhook_endpoints.disable
            UPDATE reeve.webhook_endpoints SET state = 'disabled', disabled_reason = 'the endpoint answered 410 Gone'
            WHERE tenant_id = $1 AND id = $2 RETURNING tenant_id",
        );
        scope.write(disable.bind(tenant).bind(delivery.endpoint_id), Rows::Exactly(1)).await?;
        let target = format!("endpoint:{}", delivery.endpoint_id);
        scope
            .audit(
                &audit::Entry::new("worker", "endpoint.disabled", &target).because("it answered 410 Gone").by_job(job),
            )
            .await?;
    }
    scope.commit().await
}

async fn end(scope: &mut Scope, id: Uuid, state: &'static str) -> Result<(), ScopeError> {
    let update = sqlx::query_scalar(
        "-- webhook_deliveries.end
        UPDATE reeve.webhook_deliveries SET state = $3, ended_at = now() WHERE tenant_id = $1 AND id = $2
        RETURNING tenant_id",
    )
    .bind(scope.tenant().as_str().to_owned())
    .bind(id)
    .bind(state);
    scope.write(update, Rows::Exactly(1)).await.map(drop)
}

fn outcome(job: &ClaimedJob, sent: &Sent) -> Outcome {
    let said = sent.status.map(|status| format!(" ({status})")).unwrap_or_default();
    let why = format!("{}{said}", sent.result.tenant_text());
    match sent.result {
        SendResult::Delivered => Outcome::Done,
        _ if sent.status == Some(GONE) => Outcome::cancel("the endpoint answered 410 Gone and is disabled"),
        _ => {
            let attempt = u32::try_from(job.attempt).unwrap_or(1);
            let after = schedule::delay(&schedule::RETRY_POLICY, attempt, rand::random(), sent.retry_after);
            Outcome::Retry { why, after: Some(after) }
        }
    }
}
