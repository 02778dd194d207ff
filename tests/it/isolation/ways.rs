//! Every way to another tenant's rows that we could think of, each refused twice over: by the database with the program's
//! checks gone (the worker's own login, raw SQL, tenant a's true proof), and by the program with the database's policies
//! gone (a `Scope` of tenant a on a database that hides nothing).
//!
//! Ways through one particular door have suites of their own: a forged context (`capability`), a misrouted dedicated
//! database (`placements`), names out of a catalogue (`catalogue` in reeve-jobs), payloads of every kind (`kinds`, beside).
use reeve_jobs::tenant::{Directory, Rows, Scope, ScopeError, TenantRow};
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::{furnished, without_policies};
use crate::support::{Receiver, Town};

#[derive(Debug, sqlx::FromRow)]
struct Owned {
    tenant_id: String,
}

impl TenantRow for Owned {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

/// A statement that reaches for tenant b from within tenant a. `$1` is one of b's ids, where it is used.
struct Way {
    name: &'static str,
    does: Does,
    sql: &'static str,
    /// Whose id `$1` is.
    of: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq)]
enum Does {
    /// Returns `tenant_id` of each row it sees.
    Reads,
    /// Changes rows and returns the `tenant_id` of each.
    Writes,
}

const WAYS: &[Way] = &[
    Way { name: "all of a table", does: Does::Reads, sql: "SELECT tenant_id FROM reeve.webhook_events", of: None },
    Way {
        name: "search by id",
        does: Does::Reads,
        sql: "SELECT tenant_id FROM reeve.webhook_endpoints WHERE id = $1",
        of: Some("webhook_endpoints"),
    },
    Way {
        name: "search by id that names the other tenant as well",
        does: Does::Reads,
        sql: "SELECT tenant_id FROM reeve.webhook_endpoints WHERE id = $1 AND tenant_id = 'b'",
        of: Some("webhook_endpoints"),
    },
    Way {
        name: "path join without the tenant",
        does: Does::Reads,
        sql: "SELECT d.tenant_id FROM reeve.webhook_deliveries d JOIN reeve.webhook_events v ON v.id = d.event_id
              JOIN reeve.webhook_endpoints e ON e.id = d.endpoint_id",
        of: None,
    },
    Way {
        name: "subquery",
        does: Does::Reads,
        sql: "SELECT d.tenant_id FROM (SELECT * FROM reeve.webhook_deliveries) d
              WHERE d.endpoint_id IN (SELECT id FROM reeve.webhook_endpoints)",
        of: None,
    },
    Way {
        name: "union with one's own",
        does: Does::Reads,
        sql: "SELECT tenant_id FROM reeve.webhook_endpoints WHERE tenant_id = 'a'
              UNION ALL SELECT tenant_id FROM reeve.webhook_endpoints WHERE tenant_id <> 'a'",
        of: None,
    },
    Way {
        name: "the queue",
        does: Does::Reads,
        sql: "SELECT tenant_id FROM reeve.jobs",
        of: None,
    },
    Way {
        name: "the directory of tenants",
        does: Does::Reads,
        sql: "SELECT id AS tenant_id FROM reeve.tenants",
        of: None,
    },
    Way {
        name: "update by id",
        does: Does::Writes,
        sql: "UPDATE reeve.webhook_endpoints SET state = 'disabled' WHERE id = $1 RETURNING tenant_id",
        of: Some("webhook_endpoints"),
    },
    Way {
        name: "delete by id",
        does: Does::Writes,
        sql: "DELETE FROM reeve.webhook_deliveries WHERE id = $1 RETURNING tenant_id",
        of: Some("webhook_deliveries"),
    },
    Way {
        name: "batch in which one id is another's",
        does: Does::Writes,
        sql: "UPDATE reeve.webhook_deliveries SET state = 'cancelled'
              WHERE id = ANY (ARRAY(SELECT id FROM reeve.webhook_deliveries WHERE tenant_id = 'a') || $1) RETURNING tenant_id",
        of: Some("webhook_deliveries"),
    },
    Way {
        name: "update through a join",
        does: Does::Writes,
        sql: "UPDATE reeve.webhook_deliveries d SET state = 'cancelled' FROM reeve.webhook_endpoints e
              WHERE e.id = d.endpoint_id AND e.id = $1 RETURNING d.tenant_id",
        of: Some("webhook_endpoints"),
    },
    Way {
        name: "upsert over another's row",
        does: Does::Writes,
        sql: "INSERT INTO reeve.webhook_endpoints (tenant_id, id, url) VALUES ('b', $1, 'https://evil.example/')
              ON CONFLICT (tenant_id, id) DO UPDATE SET url = excluded.url RETURNING tenant_id",
        of: Some("webhook_endpoints"),
    },
    Way {
        name: "insert for another",
        does: Does::Writes,
        sql: "INSERT INTO reeve.webhook_endpoints (tenant_id, id, url) VALUES ('b', gen_random_uuid(), 'https://evil.example/')
              RETURNING tenant_id",
        of: None,
    },
    Way {
        name: "give one's own row away",
        does: Does::Writes,
        sql: "UPDATE reeve.webhook_events SET tenant_id = 'b' WHERE id = 'msg_loose' RETURNING tenant_id",
        of: None,
    },
    Way {
        name: "sweep without the tenant",
        does: Does::Writes,
        sql: "UPDATE reeve.webhook_endpoints SET state = 'disabled' RETURNING tenant_id",
        of: None,
    },
];

/// A furnished town in which a also has a row that nothing refers to.
async fn town_with_a_loose_row() -> (Town, Receiver) {
    let (town, receiver, ..) = furnished().await;
    sqlx::query(
        "INSERT INTO reeve.webhook_events (tenant_id, id, event_type, body) VALUES ('a', 'msg_loose', 'x.y', '{}')",
    )
    .execute(&town.db.admin)
    .await
    .expect("a row");
    (town, receiver)
}

/// All that b has, so that a change anywhere shows.
async fn of_b(town: &Town) -> String {
    sqlx::query_scalar(
        "SELECT jsonb_build_object(
           'endpoints', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.id) FROM reeve.webhook_endpoints t WHERE tenant_id = 'b'),
           'secrets', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.endpoint_id, t.version) FROM reeve.webhook_secrets t WHERE tenant_id = 'b'),
           'events', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.id) FROM reeve.webhook_events t WHERE tenant_id = 'b'),
           'deliveries', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.id) FROM reeve.webhook_deliveries t WHERE tenant_id = 'b'))::text",
    )
    .fetch_one(&town.db.admin)
    .await
    .expect("b's rows")
}

async fn foreign_id(town: &Town, table: Option<&str>) -> Option<Uuid> {
    let sql = format!("SELECT id FROM reeve.{} WHERE tenant_id = 'b'", table?);
    Some(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&town.db.admin).await.expect("b's row"))
}

#[tokio::test]
async fn by_no_way_does_the_database_let_a_worker_reach_another_tenant() {
    let (town, _receiver) = town_with_a_loose_row().await;
    let before = of_b(&town).await;
    for way in WAYS {
        let id = foreign_id(&town, way.of).await;
        let mut tx = town.worker.begin().await.expect("begin");
        town.hold(&mut tx, &town.a).await;
        let query = sqlx::query_scalar::<_, String>(way.sql);
        let query = if let Some(id) = id { query.bind(id) } else { query };
        match query.fetch_all(&mut *tx).await {
            // What was seen or changed is a's own, or nothing.
            Ok(owners) => assert!(owners.iter().all(|owner| owner == "a"), "{}: {owners:?}", way.name),
            Err(error) => {
                assert!(way.does == Does::Writes, "{}: {error}", way.name);
                assert!(error.to_string().contains("row-level security"), "{}: {error}", way.name);
            }
        }
        // Even if it were committed.
        let _ = tx.commit().await;
    }
    assert_eq!(of_b(&town).await, before);
}

#[tokio::test]
async fn by_no_way_does_a_scope_let_another_tenants_row_through_when_nothing_is_hidden() {
    let (town, _receiver) = town_with_a_loose_row().await;
    without_policies(&town).await;
    let before = of_b(&town).await;
    for way in WAYS {
        let id = foreign_id(&town, way.of).await;
        let mut scope = town.scope(&town.a).await;
        let refused = match way.does {
            Does::Reads => {
                let query = sqlx::query_as::<_, Owned>(way.sql);
                scope.fetch_all(if let Some(id) = id { query.bind(id) } else { query }).await.map(drop)
            }
            Does::Writes => {
                let query = sqlx::query_scalar::<_, String>(way.sql);
                scope.write(if let Some(id) = id { query.bind(id) } else { query }, Rows::AtMost(1_000)).await.map(drop)
            }
        };
        assert!(matches!(refused, Err(ScopeError::Mismatch(_))), "{}: {refused:?}", way.name);
        drop(scope);
    }
    assert_eq!(of_b(&town).await, before, "what a refused scope wrote was undone");
}

/// A login that no policy binds is refused by the programs at their start; should one get so far, its scopes still refuse.
#[tokio::test]
async fn an_administrators_connection_does_not_widen_a_scope() {
    let (town, _receiver) = town_with_a_loose_row().await;
    let directory = Directory::new(town.db.admin.clone());
    let context = town.context(&town.a).await;
    for way in WAYS {
        let id = foreign_id(&town, way.of).await;
        let mut scope = Scope::open(&directory, &context).await.expect("a scope");
        let query = sqlx::query_as::<_, Owned>(way.sql);
        let refused = scope.fetch_all(if let Some(id) = id { query.bind(id) } else { query }).await;
        assert!(matches!(refused, Err(ScopeError::Mismatch(_))), "{}: {refused:?}", way.name);
    }
}

/// COPY has no rows that a driver sees one by one; the database's layer binds it, both ways.
#[tokio::test]
async fn copy_carries_out_a_tenants_own_rows_and_carries_none_in() {
    let (town, ..) = furnished().await;
    let mut worker = PgConnection::connect_with(&town.db.options("reeve_worker")).await.expect("the worker's login");
    for source in ["reeve.webhook_events (tenant_id)", "(SELECT tenant_id FROM reeve.webhook_deliveries)"] {
        let mut tx = worker.begin().await.expect("begin");
        town.hold(&mut tx, &town.a).await;
        let mut copied = Vec::new();
        let mut rows = tx.copy_out_raw(&format!("COPY {source} TO STDOUT")).await.expect("a copy");
        while let Some(chunk) = futures::StreamExt::next(&mut rows).await {
            copied.extend_from_slice(&chunk.expect("a chunk"));
        }
        assert_eq!(String::from_utf8_lossy(&copied), "a\n", "{source}");
    }
    let mut tx = worker.begin().await.expect("begin");
    town.hold(&mut tx, &town.a).await;
    let refused = tx.copy_in_raw("COPY reeve.webhook_events (tenant_id, id, event_type, body) FROM STDIN").await;
    let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("row-level security"), "{refused}");
}

/// One connection, as a pool hands it on: each scope sees its own tenant, also after one that failed or was dropped.
#[tokio::test]
async fn tenants_that_follow_each_other_on_one_connection_see_their_own_rows() {
    let (town, ..) = furnished().await;
    let pool = reeve_jobs::program::db::pool(town.db.options("reeve_worker"), 1).await.expect("a pool");
    let directory = Directory::new(pool);
    let contexts = [town.context(&town.a).await, town.context(&town.b).await];
    for turn in 0..12 {
        let context = &contexts[turn % 2];
        let mut scope = Scope::open(&directory, context).await.expect("a scope");
        let rows: Vec<Owned> = scope.fetch_all(sqlx::query_as(WAYS[0].sql)).await.expect("own rows");
        assert_eq!(rows.len(), 1, "{rows:?}");
        match turn % 3 {
            0 => scope.commit().await.expect("a commit"),
            1 => drop(scope),
            _ => {
                let failed = scope.fetch_value::<i32>(sqlx::query_scalar("SELECT 1 / 0")).await;
                assert!(failed.is_err());
            }
        }
    }
}

/// A statement that was prepared, and planned for good, in one tenant's context serves the next tenant its own rows.
#[tokio::test]
async fn a_prepared_statement_does_not_carry_its_first_tenant_along() {
    let (town, ..) = furnished().await;
    let mut worker = PgConnection::connect_with(&town.db.options("reeve_worker")).await.expect("the worker's login");
    for mode in ["auto", "force_generic_plan", "force_custom_plan"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("SET plan_cache_mode = {mode}")))
            .execute(&mut worker)
            .await
            .expect("set");
        // The sixth execution is the first that may use a generic plan.
        for turn in 0..16 {
            let tenant = if turn % 8 < 7 { &town.a } else { &town.b };
            let mut tx = worker.begin().await.expect("begin");
            town.hold(&mut tx, tenant).await;
            let rows = sqlx::query(WAYS[0].sql).fetch_all(&mut *tx).await.expect("rows");
            let owners: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(owners, [tenant.as_str()], "{mode}, turn {turn}");
        }
    }
}
