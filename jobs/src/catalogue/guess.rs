//! What a column's name, and some of its values, say about it. Guesses, each of which a person reads in the draft.
use super::{
    introspect::{Column, Table},
    model::PiiKind,
};

/// Names of tables of tenants, the likeliest first, without their plural `s`.
const TENANT_TABLES: [&str; 14] = [
    "tenant",
    "organization",
    "organisation",
    "workspace",
    "org",
    "account",
    "team",
    "shop",
    "store",
    "merchant",
    "site",
    "company",
    "customer",
    "client",
];
const MIGRATION_TABLES: [&str; 12] = [
    "schema_migrations",
    "_prisma_migrations",
    "flyway_schema_history",
    "ar_internal_metadata",
    "knex_migrations",
    "knex_migrations_lock",
    "alembic_version",
    "goose_db_version",
    "django_migrations",
    "_sqlx_migrations",
    "databasechangelog",
    "databasechangeloglock",
];
const AGE: [&str; 14] = [
    "createdat",
    "insertedat",
    "created",
    "createdon",
    "sentat",
    "receivedat",
    "occurredat",
    "recordedat",
    "loggedat",
    "issuedon",
    "issuedat",
    "timestamp",
    "at",
    "date",
];
const OBJECT_KEYS: [&str; 10] = [
    "objectkey",
    "storagekey",
    "s3key",
    "filekey",
    "blobkey",
    "storagepath",
    "filepath",
    "objectname",
    "s3path",
    "blobname",
];
const SECRETS: [&str; 8] =
    ["accesstoken", "refreshtoken", "secret", "apikey", "privatekey", "secretkey", "clientsecret", "webhooksecret"];

/// Lower case, without what separates words.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn singular(name: &str) -> String {
    let name = plain(name);
    match name.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => name.strip_suffix('s').unwrap_or(&name).to_owned(),
    }
}

/// How likely this is a table of tenants by its name; less is likelier.
pub fn tenant_rank(table: &str) -> Option<usize> {
    let name = singular(table);
    TENANT_TABLES.iter().position(|word| *word == name)
}

/// The same for the name of a column.
pub fn tenant_column_rank(column: &str) -> Option<usize> {
    tenant_rank(plain(column).strip_suffix("id")?)
}

pub fn is_migration_table(name: &str) -> bool {
    MIGRATION_TABLES.contains(&name.to_lowercase().as_str())
}

/// Does this label of a polymorphic type column mean that table?
pub fn means(label: &str, table: &str) -> bool {
    let last = label.rsplit([':', '.', '\\']).next().unwrap_or(label);
    singular(last) == singular(table)
}

fn is_text(column: &Column) -> bool {
    column.family() == "text" && column.enumeration.is_empty()
}

fn is_json(column: &Column) -> bool {
    matches!(column.base.as_str(), "json" | "jsonb")
}

pub fn may_be_sampled(column: &Column) -> bool {
    is_text(column) || is_json(column)
}

/// What personal data a column seems to hold. The name decides first; then most of the values that were seen.
pub fn pii(table: &Table, column: &Column, values: &[String]) -> Option<PiiKind> {
    if matches!(column.base.as_str(), "inet" | "cidr") {
        return Some(PiiKind::Ip);
    }
    let name = plain(&column.name);
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if has(&["birthday", "birthdate", "dateofbirth"]) || name == "dob" {
        return Some(PiiKind::BirthDate);
    }
    if is_json(column) {
        let named = has(&["profile", "contact", "person", "address", "identity"]);
        return (named || values.iter().any(|v| v.split('"').any(is_email))).then_some(PiiKind::Mixed);
    }
    if !is_text(column) {
        return None;
    }
    let of_person =
        ["user", "person", "people", "contact", "customer", "member", "employee", "recipient", "patient", "lead"]
            .contains(&singular(&table.name.name).as_str());
    let by_name = if has(&["email", "toaddress", "fromaddress"]) || name == "mail" {
        Some(PiiKind::Email)
    } else if has(&["phone", "mobile", "whatsapp", "msisdn"]) || name == "fax" {
        Some(PiiKind::Phone)
    } else if has(&[
        "firstname",
        "lastname",
        "fullname",
        "surname",
        "givenname",
        "familyname",
        "displayname",
        "filename",
    ]) || (of_person && name == "name")
    {
        Some(PiiKind::Name)
    } else if has(&["street", "postcode", "postalcode", "zipcode", "addressline"]) || name == "address" {
        Some(PiiKind::Address)
    } else if has(&["ipaddress", "remoteip", "clientip", "lastip"]) || name == "ip" {
        Some(PiiKind::Ip)
    } else if has(&["passport", "nationalid", "socialsecurity"]) || name == "ssn" {
        Some(PiiKind::NationalId)
    } else if has(&["iban", "cardnumber", "accountnumber"]) {
        Some(PiiKind::Financial)
    } else if ["body", "note", "notes", "comment", "comments", "message", "transcript", "subject"]
        .contains(&name.as_str())
    {
        Some(PiiKind::FreeText)
    } else {
        None
    };
    by_name.or_else(|| by_value(values))
}

fn by_value(values: &[String]) -> Option<PiiKind> {
    let most = |what: fn(&str) -> bool| values.iter().filter(|v| what(v)).count() * 2 > values.len();
    if most(is_email) {
        Some(PiiKind::Email)
    } else if most(is_phone) {
        Some(PiiKind::Phone)
    } else if most(is_full_name) {
        Some(PiiKind::Name)
    } else {
        None
    }
}

fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.split_once('@') else { return false };
    let word = |part: &str| !part.is_empty() && !part.contains([' ', '@', '/', ':']);
    word(local) && word(host) && host.contains('.') && !host.starts_with('.') && !host.ends_with('.')
}

/// International numbers alone: other digits are mostly not telephones.
fn is_phone(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('+') else { return false };
    let digits = rest.chars().filter(char::is_ascii_digit).count();
    (8..=15).contains(&digits) && rest.chars().all(|c| c.is_ascii_digit() || " -().".contains(c))
}

fn is_full_name(text: &str) -> bool {
    let words: Vec<_> = text.split(' ').collect();
    let name = |word: &&str| {
        word.chars().next().is_some_and(char::is_uppercase)
            && word.chars().all(|c| c.is_alphabetic() || c == '\'' || c == '-')
            && word.chars().any(char::is_lowercase)
    };
    (2..=3).contains(&words.len()) && words.iter().all(name)
}

/// Text that opens something, and no hash of it.
pub fn is_secret(column: &Column) -> bool {
    let name = plain(&column.name);
    is_text(column)
        && !name.contains("hash")
        && !name.contains("digest")
        && SECRETS.iter().any(|word| name == *word || name.ends_with(word))
}

/// The column that says how old a row is.
pub fn age(table: &Table) -> Option<&str> {
    let timely = |c: &&Column| c.base.starts_with("timestamp") || c.base == "date";
    let named = AGE.iter().find_map(|word| table.columns.iter().filter(timely).find(|c| plain(&c.name) == *word));
    named.map(|column| column.name.as_str())
}

pub fn soft_delete(table: &Table) -> Option<&str> {
    let named = |c: &&Column| ["deletedat", "isdeleted", "deleted", "discardedat"].contains(&plain(&c.name).as_str());
    table.columns.iter().find(named).map(|column| column.name.as_str())
}

pub fn object_key(table: &Table) -> Option<&str> {
    let named = |c: &&Column| is_text(c) && OBJECT_KEYS.contains(&plain(&c.name).as_str());
    table.columns.iter().find(named).map(|column| column.name.as_str())
}

pub fn bucket(table: &Table) -> Option<&str> {
    table.columns.iter().find(|c| is_text(c) && plain(&c.name).contains("bucket")).map(|column| column.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_what_a_name_does_not() {
        let values = |all: &[&str]| by_value(&all.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(values(&["a@b.example", "c.d@e.example", ""]), Some(PiiKind::Email));
        assert_eq!(values(&["+49 30 1234567", "+1 (555) 010-9999"]), Some(PiiKind::Phone));
        assert_eq!(values(&["Ada Lovelace", "Jean-Luc O'hara"]), Some(PiiKind::Name));
        assert_eq!(values(&["postgres://u:p@h.example/x", "12345678", "Large Box of 3"]), None);
        assert_eq!(values(&[]), None);
    }

    #[test]
    fn tables_of_tenants_are_known_by_many_names() {
        assert!(tenant_rank("Workspaces") < tenant_rank("companies"));
        assert_eq!(tenant_column_rank("organizationId"), tenant_rank("organizations"));
        assert_eq!(tenant_rank("invoices"), None);
        assert!(means("App\\Models\\Contact", "contacts") && !means("Contract", "contacts"));
    }
}
