//! A first catalogue for a database that nobody described: `reeve catalogue init`.
//!
//! It prefers to say `scope = "?"` over a wrong guess, and `check` refuses that mark: whose rows a table holds is the one
//! thing that must not be guessed. Sampled values decide kinds and are never written anywhere.
use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgPool;

use super::{
    Schema, TableName, guess,
    introspect::{Column, ForeignKey, Table, TableKind},
    model::{NullRows, PATH_STEPS_MAX, Parent, Scope, Step, Tenants},
    name::ident,
};

/// Some values of each text and json column.
pub type Samples = BTreeMap<(TableName, String), Vec<String>>;

const SAMPLE_ROWS: usize = 50;
const SAMPLE_CHARS: usize = 300;
/// A function takes 100 arguments.
const SAMPLE_COLUMNS: usize = 90;

/// Reads some rows of every table that may be read. A table that refuses is drafted by its names alone.
pub async fn sample(pool: &PgPool, schema: &Schema) -> Samples {
    let mut samples = Samples::new();
    for table in schema.tables.values().filter(|table| table.holds_rows()) {
        let columns: Vec<_> = table.columns.iter().filter(|column| guess::may_be_sampled(column)).collect();
        for columns in columns.chunks(SAMPLE_COLUMNS) {
            let values = columns.iter().map(|c| format!("left({}::text, {SAMPLE_CHARS})", ident(&c.name)));
            let values = values.collect::<Vec<_>>().join(", ");
            let sql = format!(
                "-- catalogue.sample\nSELECT jsonb_build_array({values}) FROM {} LIMIT {SAMPLE_ROWS}",
                table.from_sql()
            );
            let rows: Result<Vec<serde_json::Value>, _> =
                sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await;
            let rows = rows.unwrap_or_else(|error| {
                tracing::warn!(table = %table.name, %error, "no rows could be sampled");
                Vec::new()
            });
            for (index, column) in columns.iter().enumerate() {
                let values = rows.iter().filter_map(|row| row[index].as_str().map(str::to_owned)).collect();
                samples.insert((table.name.clone(), column.name.clone()), values);
            }
        }
    }
    samples
}

/// Whose rows each table holds, as far as it can be told; and why not, where it cannot.
#[derive(Debug, Default)]
pub struct Guess {
    pub tenants: Option<Tenants>,
    /// Where no table of tenants was found: those that most tables point at.
    pub likely: Vec<TableName>,
    pub scopes: BTreeMap<TableName, Scope>,
    /// For tables whose scope is `"?"`.
    pub doubts: BTreeMap<TableName, String>,
}

/// Guesses all scopes. `tenants` overrules the guess of which table has the tenants.
pub fn scopes(schema: &Schema, samples: &Samples, tenants: Option<&TableName>) -> Guess {
    let mut guess = Guess { tenants: tenants_table(schema, tenants), ..Guess::default() };
    if guess.tenants.is_none() {
        guess.likely = most_pointed_at(schema);
    }
    by_column(schema, &mut guess);
    by_path(schema, &mut guess);
    // Each may open the way for the next: settings of an organisation, then the logo of those settings.
    for _ in 0..PATH_STEPS_MAX {
        reverse(schema, &mut guess);
    }
    polymorphic(schema, samples, &mut guess);
    rest(schema, &mut guess);
    guess
}

fn tenants_table(schema: &Schema, told: Option<&TableName>) -> Option<Tenants> {
    let candidates = schema.tables.values().filter(|table| match told {
        Some(told) => table.name == *told,
        None => guess::tenant_rank(&table.name.name).is_some(),
    });
    let best = candidates.filter(|table| table.holds_rows() && table.primary_key.len() == 1).max_by_key(|table| {
        let pointing =
            schema.tables.values().filter(|other| points_at(other, &table.name, &table.primary_key).is_some());
        let rank = guess::tenant_rank(&table.name.name).unwrap_or(usize::MAX);
        (pointing.count(), std::cmp::Reverse(rank))
    })?;
    let key = best.primary_key[0].clone();
    Some(Tenants { table: best.name.clone(), key, place: Default::default() })
}

fn most_pointed_at(schema: &Schema) -> Vec<TableName> {
    const SHOWN: usize = 5;
    let pointing =
        |to: &Table| schema.tables.values().filter(|t| points_at(t, &to.name, &to.primary_key).is_some()).count();
    let keyed = schema.tables.values().filter(|table| table.primary_key.len() == 1);
    let mut all: Vec<_> = keyed.map(|table| (pointing(table), table)).filter(|(n, _)| *n > 1).collect();
    all.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    all.into_iter().take(SHOWN).map(|(_, table)| table.name.clone()).collect()
}

/// A foreign key of one column to the key of that table.
fn points_at<'a>(table: &'a Table, to: &TableName, key: &[String]) -> Option<&'a ForeignKey> {
    table
        .foreign_keys
        .iter()
        .find(|fk| fk.table == *to && fk.columns.len() == 1 && fk.target == key && table.name != *to)
}

fn by_column(schema: &Schema, guess: &mut Guess) {
    let owned = |table: &Table, column: &str| {
        let nullable = table.column(column).is_some_and(|c| c.nullable);
        Scope::Column { column: column.to_owned(), null: nullable.then_some(NullRows::Nobody) }
    };
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut family = None;
    if let Some(tenants) = &guess.tenants {
        let key = [tenants.key.clone()];
        family = schema.tables.get(&tenants.table).and_then(|t| t.column(&tenants.key)).map(|c| c.family().to_owned());
        for table in schema.tables.values() {
            if let Some(fk) = points_at(table, &tenants.table, &key) {
                *names.entry(fk.columns[0].as_str()).or_default() += 1;
            }
        }
    }
    if names.is_empty() {
        let columns = schema.tables.values().filter(|t| t.holds_rows()).flat_map(|t| &t.columns);
        for column in columns.filter(|c| c.may_be_tenant() && guess::tenant_column_rank(&c.name).is_some()) {
            *names.entry(column.name.as_str()).or_default() += 1;
        }
    }
    // The name that most tables use; where two are used alike, the likelier word.
    let usual = names.iter().max_by_key(|(name, n)| {
        let rank = guess::tenant_column_rank(name).unwrap_or(usize::MAX);
        (**n, std::cmp::Reverse(rank))
    });
    let usual = usual.map(|(name, _)| *name);
    for table in schema.tables.values().filter(|table| table.holds_rows()) {
        let column = match &guess.tenants {
            Some(tenants) if tenants.table == table.name => Some(tenants.key.as_str()),
            tenants => {
                let fits = |name: &&str| {
                    let fits =
                        |c: &Column| c.may_be_tenant() && family.as_deref().is_none_or(|family| family == c.family());
                    table.column(name).is_some_and(fits) && !means_another(table, name, tenants.as_ref())
                };
                let by_key = tenants.as_ref().and_then(|t| points_at(table, &t.table, std::slice::from_ref(&t.key)));
                usual.filter(fits).or(by_key.map(|fk| fk.columns[0].as_str()))
            }
        };
        if let Some(column) = column {
            guess.scopes.insert(table.name.clone(), owned(table, column));
        }
    }
}

/// Does a column of the usual name point at some other table than that of the tenants? Then it holds another's id.
fn means_another(table: &Table, column: &str, tenants: Option<&Tenants>) -> bool {
    let keys = table.foreign_keys.iter().filter(|key| key.columns.len() == 1 && key.columns[0] == column);
    let mut tables = keys.map(|key| &key.table).peekable();
    tenants.is_some_and(|tenants| tables.peek().is_some() && tables.all(|table| *table != tenants.table))
}

/// The shortest way over foreign keys to a table with a tenant column: over columns that are never NULL, however long, before
/// one that some rows do not have.
fn by_path(schema: &Schema, guess: &mut Guess) {
    let direct: BTreeSet<_> = guess.scopes.keys().cloned().collect();
    for table in schema.tables.values().filter(|t| t.holds_rows() && !direct.contains(&t.name)) {
        let steps = way(schema, &direct, table, false).or_else(|| way(schema, &direct, table, true));
        // Further than a path goes: a shorter one with gaps would lose the rows in the gaps.
        if let Some(steps) = steps.filter(|steps| steps.len() <= PATH_STEPS_MAX) {
            guess.scopes.insert(table.name.clone(), Scope::Path(steps));
        }
    }
}

fn way(schema: &Schema, direct: &BTreeSet<TableName>, table: &Table, nullable: bool) -> Option<Vec<Step>> {
    let mut ways: Vec<(Vec<Step>, &Table)> = vec![(Vec::new(), table)];
    let mut seen = BTreeSet::from([table.name.clone()]);
    while !ways.is_empty() {
        let mut further = Vec::new();
        for (steps, at) in ways {
            for key in sorted_keys(at).into_iter().filter(|key| nullable || !at.may_be_null(&key.columns)) {
                let Some(next) = schema.tables.get(&key.table).filter(|next| seen.insert(next.name.clone())) else {
                    continue;
                };
                let step = Step { columns: key.columns.clone(), table: key.table.clone(), target: Vec::new() };
                let steps = steps.iter().cloned().chain([step]).collect::<Vec<_>>();
                if direct.contains(&next.name) {
                    return Some(steps);
                }
                further.push((steps, next));
            }
        }
        ways = further;
    }
    None
}

fn sorted_keys(table: &Table) -> Vec<&ForeignKey> {
    let mut keys: Vec<_> = table.foreign_keys.iter().collect();
    keys.sort_by_key(|key| (table.may_be_null(&key.columns), key.name.clone()));
    keys
}

/// A row that one owned row alone can point at is owned by it.
fn reverse(schema: &Schema, guess: &mut Guess) {
    for table in schema.tables.values().filter(|table| table.holds_rows()) {
        if guess.scopes.contains_key(&table.name) {
            continue;
        }
        let pointing = schema
            .tables
            .values()
            .filter(|parent| parent.name != table.name && guess.scopes.get(&parent.name).is_some_and(Scope::is_owned));
        let keys: Vec<_> = pointing
            .flat_map(|parent| parent.foreign_keys.iter().map(move |key| (parent, key)))
            .filter(|(_, key)| key.table == table.name)
            .collect();
        let alone = |(parent, key): &(&Table, &ForeignKey)| parent.unique_sets().contains(&key.columns.as_slice());
        if !keys.is_empty() && keys.iter().all(alone) {
            let parents =
                keys.iter().map(|(p, key)| Parent { table: p.name.clone(), columns: key.columns.clone() }).collect();
            guess.scopes.insert(table.name.clone(), Scope::Reverse(parents));
        } else if !keys.is_empty() {
            let each = |(parent, key): &(&Table, &ForeignKey)| {
                let columns = key.columns.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(", ");
                format!("[{:?}, [{columns}]]", parent.name.to_string())
            };
            let parents = keys.iter().map(each).collect::<Vec<_>>().join(", ");
            let doubt = format!(
                "Rows of tenants point here, several at one row. Rows of several tenants, seen by each that points: {SHARED}{parents}] }};\n# the same for all: \"reference\"."
            );
            guess.doubts.insert(table.name.clone(), doubt);
        }
    }
}

fn polymorphic(schema: &Schema, samples: &Samples, guess: &mut Guess) {
    for table in schema.tables.values().filter(|table| table.holds_rows()) {
        if guess.scopes.contains_key(&table.name) {
            continue;
        }
        let pair = table.columns.iter().find_map(|column| {
            let (stem, id) = match (column.name.strip_suffix("_type"), column.name.strip_suffix("Type")) {
                (Some(stem), _) => (stem, "_id"),
                (None, Some(stem)) => (stem, "Id"),
                (None, None) => return None,
            };
            Some((column, table.column(&format!("{stem}{id}"))?))
        });
        let Some((type_column, id_column)) = pair else { continue };
        let seen = samples.get(&(table.name.clone(), type_column.name.clone())).cloned().unwrap_or_default();
        let labels: BTreeSet<_> = type_column.enumeration.iter().chain(&seen).cloned().collect();
        let owned: Vec<_> =
            schema.tables.keys().filter(|name| guess.scopes.get(*name).is_some_and(Scope::is_owned)).collect();
        let of: BTreeMap<_, _> = labels
            .iter()
            .filter_map(|label| {
                let mut fitting = owned.iter().filter(|name| guess::means(label, &name.name));
                // Two tables of the same name in two schemas: not to be told here.
                fitting.next().filter(|_| fitting.next().is_none()).map(|name| (label.clone(), (*name).clone()))
            })
            .collect();
        if !labels.is_empty() && of.len() == labels.len() {
            let (type_column, id_column) = (type_column.name.clone(), id_column.name.clone());
            guess.scopes.insert(table.name.clone(), Scope::Polymorphic { type_column, id_column, of });
        } else {
            let doubt = format!(
                "{} and {} point at rows of several tables. Write: {{ polymorphic = {{ type_column, id_column, of = {{ Value = \"schema.table\" }} }} }}.",
                type_column.name, id_column.name
            );
            guess.doubts.insert(table.name.clone(), doubt);
        }
    }
}

/// How the suggestion of a shared scope begins.
const SHARED: &str = "{ shared = [";
const NO_WAY: &str = "No tenant column, and no foreign key leads to one. The same for all tenants: \"reference\";\n# no business of any duty: { ignored = \"why\" }.";

/// What hangs on rows that tenants share: a person's sessions, for one.
fn with_shared(schema: &Schema, guess: &Guess, table: &Table) -> Option<String> {
    let open = |name: &TableName| guess.scopes.get(name).is_none_or(|scope| *scope == Scope::Undecided);
    let shared = |name: &TableName| guess.doubts.get(name).is_some_and(|doubt| doubt.contains(SHARED));
    let over = table.foreign_keys.iter().map(|key| &key.table);
    let to =
        over.filter(|to| **to != table.name && open(to) && schema.tables.contains_key(*to)).find(|to| shared(to))?;
    Some(format!(
        "Its rows go with those of {to}, which may be several tenants'. Kept from the jobs of every tenant: \"shared\";\n# no business of any duty: {{ ignored = \"why\" }}."
    ))
}

fn too_far(schema: &Schema, guess: &Guess, table: &Table) -> Option<String> {
    let has_column = |(_, scope): &(&TableName, &Scope)| matches!(scope, Scope::Column { .. });
    let direct = guess.scopes.iter().filter(has_column).map(|(name, _)| name.clone()).collect();
    let joins = way(schema, &direct, table, false).or_else(|| way(schema, &direct, table, true))?.len();
    Some(format!(
        "A tenant is {joins} joins away, and a path goes over {PATH_STEPS_MAX}: give the table a tenant column of its own.\n# No business of any duty: {{ ignored = \"why\" }}."
    ))
}

fn rest(schema: &Schema, guess: &mut Guess) {
    for table in schema.tables.values() {
        if guess.scopes.contains_key(&table.name) {
            continue;
        }
        let scope = match table.kind {
            TableKind::View => continue,
            TableKind::MaterializedView => Scope::Ignored(
                "a materialized view: it keeps copies of rows, and is refreshed after a purge".to_owned(),
            ),
            _ if guess::is_migration_table(&table.name.name) => Scope::Ignored("the migration tool's own".to_owned()),
            _ => {
                let doubt = with_shared(schema, guess, table).or_else(|| too_far(schema, guess, table));
                let doubt = doubt.unwrap_or_else(|| NO_WAY.to_owned());
                guess.doubts.entry(table.name.clone()).or_insert(doubt);
                Scope::Undecided
            }
        };
        guess.scopes.insert(table.name.clone(), scope);
    }
}
