//! Whose database is this? What a scope asks of the database that it has opened, and how the answer is judged.
//!
//! The question rides in the statement that sets the context, so it is asked at each checkout and costs no round trip. A
//! wrong URL, another tenant's database, a copy from before a move and a database of nobody's are all refused before a row
//! is read or written. The texts name no other tenant: they end in the job's history, which its tenant may read.
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::TenantId;

/// What a dedicated database says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub tenant: String,
    pub region: String,
    pub epoch: i32,
}

/// A database's answer; see `reeve.database_facts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `None` in the control database.
    pub identity: Option<Identity>,
    /// Whether its shared tables may hold rows of the region that was asked for.
    pub holds_region: bool,
    /// Where it believes the tenant to be; only the control database knows.
    pub placement: Option<String>,
}

impl Facts {
    pub(super) fn of(row: &PgRow) -> sqlx::Result<Self> {
        let tenant: Option<String> = row.try_get("identity_tenant")?;
        let identity = match tenant {
            Some(tenant) => Some(Identity {
                tenant,
                region: row.try_get("identity_region")?,
                epoch: row.try_get("identity_epoch")?,
            }),
            None => None,
        };
        Ok(Self { identity, holds_region: row.try_get("holds_region")?, placement: row.try_get("placement")? })
    }

    /// Whether this is the control database. The text says what is wrong.
    pub fn must_be_control(&self) -> Result<(), String> {
        match &self.identity {
            None => Ok(()),
            Some(_) => Err("the database is a tenant's own, and not the control database".to_owned()),
        }
    }

    /// Whether this is the control database, and its shared tables may hold rows of this region.
    pub fn must_be_shared(&self, region: &str) -> Result<(), String> {
        self.must_be_control()?;
        if self.holds_region {
            return Ok(());
        }
        Err(format!("the shared database may not hold rows of region {region}"))
    }

    /// Whether this is that tenant's own database, in that region, as it was placed last.
    pub fn must_be_dedicated(&self, tenant: &TenantId, region: &str, epoch: i32) -> Result<(), String> {
        let Some(identity) = &self.identity else {
            return Err(format!("the database has no identity; it was not prepared for tenant \"{tenant}\""));
        };
        if identity.tenant != tenant.as_str() {
            return Err(format!("the database is another tenant's, and not \"{tenant}\"'s"));
        }
        if identity.region != region {
            return Err(format!("the database is in region {}, and not in {region}", identity.region));
        }
        if identity.epoch != epoch {
            let found = identity.epoch;
            return Err(format!(
                "the database is at epoch {found} and not at {epoch}: a copy, or the one before or after a move"
            ));
        }
        Ok(())
    }
}

/// Asks a database who it is, outside any scope: of one that a tenant is to be placed in.
pub async fn ask(connection: &mut PgConnection, tenant: &TenantId, region: &str) -> sqlx::Result<Facts> {
    let row = sqlx::query("-- identity.ask\nSELECT f.* FROM reeve.database_facts($1, $2) f")
        .bind(tenant.as_str())
        .bind(region)
        .fetch_one(connection)
        .await?;
    Facts::of(&row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(identity: Option<(&str, &str, i32)>, holds_region: bool) -> Facts {
        let identity = identity.map(|(tenant, region, epoch)| Identity {
            tenant: tenant.to_owned(),
            region: region.to_owned(),
            epoch,
        });
        Facts { identity, holds_region, placement: None }
    }

    #[test]
    fn a_dedicated_database_must_be_of_that_tenant_region_and_epoch() {
        let a: TenantId = "a".parse().expect("an id");
        let judged = |identity| facts(identity, true).must_be_dedicated(&a, "eu", 3);
        assert_eq!(judged(Some(("a", "eu", 3))), Ok(()));
        for (wrong, says) in [
            (None, "no identity"),
            (Some(("secret-b", "eu", 3)), "another tenant's"),
            (Some(("a", "us", 3)), "in region us"),
            (Some(("a", "eu", 2)), "epoch 2"),
            (Some(("a", "eu", 4)), "epoch 4"),
        ] {
            let said = judged(wrong).expect_err("refused");
            assert!(said.contains(says) && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn the_shared_database_is_nobodys_and_may_hold_the_region() {
        assert_eq!(facts(None, true).must_be_shared("eu"), Ok(()));
        assert!(facts(None, false).must_be_shared("eu").expect_err("refused").contains("region eu"));
        assert!(facts(Some(("a", "eu", 1)), true).must_be_shared("eu").is_err());
    }
}
