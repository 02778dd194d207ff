//! Is this database safe to work in? Asked by every program that acts, before it does anything.
//!
//! Row-level security binds neither superusers, nor owners that do not force it, nor whoever may become one of these. So a
//! program looks, as the role it logged in as, at what it is and could become, and at the guards of the tables and
//! functions it will use; what it finds are [`Fault`]s, each with the statement that mends it. One statement, no row of
//! anybody's read. `reeve doctor` asks the same of all roles ([`faults`]), and looks further: at each single privilege.
//!
//! Not seen here: a superuser that changed its session's user by SET SESSION AUTHORIZATION before it asked.
use sqlx::{PgConnection, PgPool, Row};

const FAULTS: &str = include_str!("soundness.sql");

/// The roles that programs and apps log in as.
pub const LOGIN_ROLES: [&str; 4] = ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"];

/// The roles that own schema, tables and functions; nobody logs in as one.
const OWNERS: [&str; 2] = ["reeve_owner", "reeve_dispatch"];

/// Why a program does not start.
#[derive(Debug, thiserror::Error)]
pub enum SoundnessError {
    #[error("this database is not safe for tenants' data, so nothing was started:{}", told(.0))]
    Unsound(Vec<Fault>),
    #[error("whether the database is safe to work in could not be read: {0}")]
    Database(#[from] sqlx::Error),
}

fn told(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}; fix: {}", fault.fix())).collect()
}

/// Something that lets a tenant's rows out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// `attribute` is as ALTER ROLE spells it. `own` is the role that it should have logged in as.
    #[error("{role} {}", what(.attribute))]
    Attribute { role: String, attribute: String, own: String },
    #[error("{role} owns schema, tables or functions, and can log in")]
    OwnerLogsIn { role: String },
    #[error("{role} owns {thing}, and an owner may undo any guard")]
    Owns { role: String, thing: String },
    #[error("{role} is a member of {of}, and may become it")]
    Member { role: String, of: String },
    /// Has another program's rights beside its own, or instead of them.
    #[error("{role} {} the role of another program{}", if .role == .of { "is" } else { "may become" }, if .role == .of { String::new() } else { format!(", {of}") })]
    Foreign { role: String, of: String, own: String },
    #[error("{role} is neither {own} nor a member of it")]
    Stranger { role: String, own: String },
    #[error("{table} {}", if *.enabled { "does not force row-level security" } else { "has no row-level security" })]
    Unguarded { table: String, enabled: bool },
    #[error("{function} has no pinned search_path, though it is SECURITY DEFINER")]
    Unpinned { function: String },
}

fn what(attribute: &str) -> &'static str {
    match attribute {
        "SUPERUSER" => "is a superuser",
        "BYPASSRLS" => "bypasses row-level security",
        "CREATEROLE" => "may make itself a member of any role",
        _ => "may read the log of all changes",
    }
}

impl Fault {
    /// The statement, or the sentence where none can be given.
    pub fn fix(&self) -> String {
        match self {
            Self::Attribute { role, attribute, .. }
                if LOGIN_ROLES.contains(&role.as_str()) || OWNERS.contains(&role.as_str()) =>
            {
                format!("ALTER ROLE {role} NO{attribute};")
            }
            Self::Attribute { own, .. } | Self::Stranger { own, .. } => format!("let its database_url log in as {own}"),
            Self::OwnerLogsIn { role } => format!("ALTER ROLE {role} NOLOGIN;"),
            Self::Owns { role, thing } => format!("give {thing} of {role} to reeve_owner;"),
            Self::Member { role, of } => format!("REVOKE {of} FROM {role};"),
            Self::Foreign { role, of, own } if role == of => format!("let its database_url log in as {own}"),
            Self::Foreign { role, of, .. } => format!("REVOKE {of} FROM {role};"),
            Self::Unguarded { table, enabled } => {
                let what = if *enabled { "FORCE" } else { "ENABLE" };
                format!("ALTER TABLE reeve.{table} {what} ROW LEVEL SECURITY;")
            }
            Self::Unpinned { function } => format!("ALTER FUNCTION {function} SET search_path = pg_catalog, pg_temp;"),
        }
    }
}

/// Everything wrong with this connection, which is for the role `own`, with `logins`, and with what they all rely on.
pub async fn faults(connection: &mut PgConnection, own: &str, logins: &[&str]) -> sqlx::Result<Vec<Fault>> {
    let logins: Vec<_> = logins.iter().map(|role| (*role).to_owned()).collect();
    let rows = sqlx::query(FAULTS).bind(own).bind(logins).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let (kind, subject): (&str, String) = (row.try_get("fault")?, row.try_get("subject")?);
            let (object, own): (String, String) = (row.try_get("object")?, row.try_get("own")?);
            Ok(match kind {
                "attribute" => Fault::Attribute { role: subject, attribute: object, own },
                "login" => Fault::OwnerLogsIn { role: subject },
                "owns" => Fault::Owns { role: subject, thing: object },
                "member" => Fault::Member { role: subject, of: object },
                "foreign" => Fault::Foreign { role: subject, of: object, own },
                "stranger" => Fault::Stranger { role: subject, own },
                "unguarded" => Fault::Unguarded { table: subject, enabled: object == "FORCE" },
                _ => Fault::Unpinned { function: subject },
            })
        })
        .collect()
}

/// Refuses an unsound database. `own` is the role that the program is meant to log in as, or as a member of.
pub async fn check(pool: &PgPool, own: &str) -> Result<(), SoundnessError> {
    #[allow(clippy::disallowed_methods, reason = "catalogs: no tenant's rows are read")]
    let mut connection = pool.acquire().await?;
    let faults = faults(&mut connection, own, &[]).await?;
    if faults.is_empty() { Ok(()) } else { Err(SoundnessError::Unsound(faults)) }
}
