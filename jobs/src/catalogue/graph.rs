//! The catalogue as a picture: Graphviz's language.
use super::{Catalogue, Schema, model::Scope};

/// A digraph: boxes by scope, an arrow for each foreign key, bold where the owner is found over it.
pub fn dot(catalogue: &Catalogue, schema: &Schema) -> String {
    let mut out = String::from(
        "digraph catalogue {\n  rankdir=LR;\n  node [shape=box, style=filled, fontname=\"sans-serif\"];\n",
    );
    for (name, entry) in &catalogue.tables {
        let (colour, word) = match &entry.scope {
            Scope::Column { column, .. } => ("#cfe8cf", format!("column {column}")),
            Scope::Path(steps) => ("#dcecf7", format!("path of {}", steps.len())),
            Scope::Reverse(_) => ("#f7ecd0", "reverse".to_owned()),
            Scope::Polymorphic { .. } => ("#eadcf7", "polymorphic".to_owned()),
            Scope::Reference => ("#eeeeee", "reference".to_owned()),
            Scope::Shared(_) => ("#f7dce6", "shared".to_owned()),
            Scope::Ignored(_) => ("#ffffff", "ignored".to_owned()),
            Scope::Undecided => ("#ff9999", "?".to_owned()),
        };
        let label = quote(&format!("{name}\n{word}"));
        out.push_str(&format!("  {} [label={label}, fillcolor=\"{colour}\"];\n", quote(&name.to_string())));
    }
    for (name, entry) in &catalogue.tables {
        let from = quote(&name.to_string());
        let first = match &entry.scope {
            Scope::Path(steps) => steps.first(),
            _ => None,
        };
        for key in schema.tables.get(name).into_iter().flat_map(|table| &table.foreign_keys) {
            let owner = first.is_some_and(|step| step.table == key.table && step.columns == key.columns);
            let style = if owner { ", style=bold" } else { "" };
            let label = quote(&key.columns.join(", "));
            out.push_str(&format!("  {from} -> {} [label={label}{style}];\n", quote(&key.table.to_string())));
        }
        let dotted: Vec<_> = match &entry.scope {
            Scope::Reverse(parents) | Scope::Shared(parents) => {
                parents.iter().map(|p| (&p.table, "owned by")).collect()
            }
            Scope::Polymorphic { of, .. } => of.iter().map(|(label, table)| (table, label.as_str())).collect(),
            _ => Vec::new(),
        };
        for (to, label) in dotted {
            out.push_str(&format!("  {from} -> {} [label={}, style=dotted];\n", quote(&to.to_string()), quote(label)));
        }
    }
    out.push_str("}\n");
    out
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{fixtures::database, load};

    #[tokio::test]
    async fn every_table_is_a_box_and_the_owners_way_is_bold() {
        let (db, schema) = database(include_str!("fixtures/owners.sql")).await;
        let catalogue = load::text_of("c", include_str!("fixtures/owners.toml")).expect("a catalogue");
        let dot = dot(&catalogue, &schema);
        assert_eq!(dot.matches("fillcolor").count(), catalogue.tables.len());
        assert!(dot.contains("\"app.documents\" -> \"app.folders\" [label=\"folder_id\", style=bold];"), "{dot}");
        assert_eq!(quote("a\"b\\c"), "\"a\\\"b\\\\c\"");
        db.drop_now().await;
    }
}
