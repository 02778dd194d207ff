//! The draft as text: TOML that a person is to read and correct.
use super::{
    Schema,
    draft::{Guess, Samples},
    guess,
    introspect::{Column, Table},
    model::{NullRows, PiiKind, Scope, Step},
};

/// The whole file.
pub fn write(schema: &Schema, samples: &Samples, guess: &Guess) -> String {
    let undecided = guess.doubts.keys().filter(|name| guess.scopes.get(*name) == Some(&Scope::Undecided)).count();
    let mut out = format!(
        "#:schema ./catalogue.schema.json\n# Drafted by `reeve catalogue init` from database {}. Read all of it: names and samples were guessed from.\n",
        quote(&schema.database)
    );
    if undecided > 0 {
        out.push_str(&format!(
            "# To decide: {undecided} table(s) with scope = \"?\". `reeve catalogue check` refuses them.\n"
        ));
    }
    if guess.tenants.is_none() && !guess.likely.is_empty() {
        let likely: Vec<_> = guess.likely.iter().map(ToString::to_string).collect();
        let text = format!(
            "No table of tenants was found by its name. If one of these is it, draft again with --tenants: {}.",
            likely.join(", ")
        );
        comment(&mut out, &text.replace(['\n', '\r'], " "));
    }
    if let Some(tenants) = &guess.tenants {
        let table = quote(&tenants.table.to_string());
        out.push_str(&format!("\n[tenants]\ntable = {table}\nkey = {}\n", quote(&tenants.key)));
    }
    for (name, scope) in &guess.scopes {
        let Some(table) = schema.tables.get(name) else { continue };
        out.push('\n');
        if let Some(doubt) = guess.doubts.get(name).filter(|_| *scope == Scope::Undecided) {
            comment(&mut out, doubt);
        }
        out.push_str(&format!("[table.{}]\nscope = {}\n", quote(&name.to_string()), scope_text(scope)));
        if !matches!(scope, Scope::Ignored(_)) {
            table_text(&mut out, table, scope, samples, guess);
        }
    }
    out
}

fn table_text(out: &mut String, table: &Table, scope: &Scope, samples: &Samples, guess: &Guess) {
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    if let Scope::Path(steps) = scope {
        let others: Vec<_> = table
            .foreign_keys
            .iter()
            .filter(|key| {
                let owned = |scope: &Scope| scope.is_owned() && !scope.is_owned_over(&table.name, &key.columns);
                key.table != table.name && guess.scopes.get(&key.table).is_some_and(owned)
            })
            .filter(|key| steps.first().is_none_or(|s| (&s.columns, &s.table) != (&key.columns, &key.table)))
            .map(|key| step(&Step { columns: key.columns.clone(), table: key.table.clone(), target: Vec::new() }))
            .collect();
        if !others.is_empty() {
            line(format!("also = [{}]", others.join(", ")));
        }
    }
    let sets = table.unique_sets();
    if let (true, Some(set)) = (table.primary_key.is_empty(), sets.first()) {
        line(format!("key = {}", list(set)));
    }
    let described: Vec<_> = table.columns.iter().map(|column| (column, column_text(table, column, samples))).collect();
    let bare: Vec<_> = described.iter().filter(|(_, text)| text.is_none()).map(|(c, _)| c.name.clone()).collect();
    line(format!("columns = {}", list(&bare)));
    if !table.foreign_keys.is_empty() {
        line("references = [".to_owned());
        for key in &table.foreign_keys {
            let table = quote(&key.table.to_string());
            line(format!("  {{ columns = {}, table = {table} }},", list(&key.columns)));
        }
        line("]".to_owned());
    }
    if scope.is_owned() {
        if let Some(age) = guess::age(table) {
            line(format!("retention = {{ class = {}, age = {} }}", quote(&table.name.name), quote(age)));
        }
        let order =
            if table.primary_key.is_empty() { sets.first().copied().unwrap_or_default() } else { &table.primary_key };
        line(format!(
            "export = {{ file = {}, order = {} }}",
            quote(&format!("{}.csv", file_name(&table.name.name))),
            list(order)
        ));
    }
    if let Some(key) = guess::object_key(table) {
        let bucket = guess::bucket(table).map(|b| format!(", bucket_column = {}", quote(b))).unwrap_or_default();
        line(format!("attachments = {{ column = {}{bucket} }}", quote(key)));
    }
    if let Some(column) = guess::soft_delete(table) {
        line(format!("soft_delete = {}", quote(column)));
    }
    for (column, text) in described {
        if let Some(text) = text {
            line(format!("column.{} = {{ {text} }}", quote(&column.name)));
        }
    }
}

fn column_text(table: &Table, column: &Column, samples: &Samples) -> Option<String> {
    if guess::is_secret(column) {
        return Some("sealed = \"plain\"".to_owned());
    }
    let values = samples.get(&(table.name.clone(), column.name.clone())).map_or(&[][..], Vec::as_slice);
    let kind = pii_word(guess::pii(table, column, values)?);
    Some(match (column.generated, column.nullable) {
        (true, _) => format!("pii = \"{kind}\""),
        (false, true) => format!("pii = \"{kind}\", erase = \"null\""),
        (false, false) => format!("pii = \"{kind}\", erase = \"anonymise\""),
    })
}

fn pii_word(kind: PiiKind) -> String {
    // The enumeration's own words: a unit variant is a string.
    serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn scope_text(scope: &Scope) -> String {
    match scope {
        Scope::Column { column, null } => {
            let null = match null {
                None => "",
                Some(NullRows::Nobody) => ", null = \"nobody\"",
                Some(NullRows::Everyone) => ", null = \"everyone\"",
            };
            format!("{{ column = {}{null} }}", quote(column))
        }
        Scope::Path(steps) => format!("{{ path = [{}] }}", steps.iter().map(step).collect::<Vec<_>>().join(", ")),
        Scope::Reverse(parents) | Scope::Shared(parents) if !parents.is_empty() => {
            let word = if matches!(scope, Scope::Shared(_)) { "shared" } else { "reverse" };
            let parents: Vec<_> = parents
                .iter()
                .map(|p| format!("[{}, {}]", quote(&p.table.to_string()), one_or_list(&p.columns)))
                .collect();
            format!("{{ {word} = [{}] }}", parents.join(", "))
        }
        Scope::Polymorphic { type_column, id_column, of } => {
            let of: Vec<_> =
                of.iter().map(|(label, t)| format!("{} = {}", quote(label), quote(&t.to_string()))).collect();
            format!(
                "{{ polymorphic = {{ type_column = {}, id_column = {}, of = {{ {} }} }} }}",
                quote(type_column),
                quote(id_column),
                of.join(", ")
            )
        }
        Scope::Reference => "\"reference\"".to_owned(),
        Scope::Shared(_) => "\"shared\"".to_owned(),
        Scope::Ignored(reason) => format!("{{ ignored = {} }}", quote(reason)),
        Scope::Reverse(_) | Scope::Undecided => "\"?\"".to_owned(),
    }
}

fn step(step: &Step) -> String {
    format!("[{}, {}]", one_or_list(&step.columns), quote(&step.table.to_string()))
}

fn one_or_list(columns: &[String]) -> String {
    if let [one] = columns { quote(one) } else { list(columns) }
}

fn list<T: AsRef<str>>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(|item| quote(item.as_ref())).collect::<Vec<_>>().join(", "))
}

fn file_name(table: &str) -> String {
    table.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

/// Names stand in it, and a name may hold a line's end: whatever comes, it stays a comment.
fn comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let line = line.trim_start_matches("# ");
        out.extend("# ".chars().chain(line.chars().filter(|c| !misleads(*c))).chain(['\n']));
    }
}

/// Would a reader of the draft see something else than stands there? Controls, and what turns the direction of text or has
/// no width.
fn misleads(c: char) -> bool {
    let unseen = ['\u{200B}'..='\u{200F}', '\u{2028}'..='\u{202E}', '\u{2060}'..='\u{206F}', '\u{FEFF}'..='\u{FEFF}'];
    c.is_control() || unseen.iter().any(|range| range.contains(&c))
}

/// A TOML string.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if misleads(c) => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
