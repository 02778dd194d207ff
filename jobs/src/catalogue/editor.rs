//! The JSON Schema of `catalogue.toml`, for editors. Kept beside this file as `catalogue.schema.json`; a test holds it fresh,
//! and another compares its fields with those that the reader takes.
use serde_json::{Value, json};

/// The file, for `init` to write beside a draft.
pub const TEXT: &str = include_str!("catalogue.schema.json");

/// The schema, made anew.
pub fn schema() -> Value {
    let text = json!({ "type": "string" });
    let def = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    let names = json!({ "oneOf": [text, { "type": "array", "items": text, "minItems": 1 }] });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Reeve catalogue",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "tenants": object(json!({ "table": text, "key": text }), &["table", "key"]),
            "table": { "type": "object", "additionalProperties": def("table") },
        },
        "$defs": {
            "names": names,
            "step": {
                "description": "[column(s), table, target column(s)]",
                "type": "array", "minItems": 2, "maxItems": 3, "prefixItems": [def("names"), text, def("names")],
            },
            "parent": {
                "description": "[table, column(s) that point here]",
                "type": "array", "minItems": 2, "maxItems": 2, "prefixItems": [text, def("names")],
            },
            "scope": { "oneOf": [{ "enum": ["reference", "shared", "?"] }, def("scope_table")] },
            "scope_table": scope_table(&text),
            "erase": {
                "oneOf": [{ "enum": ["delete", "null", "anonymise"] }, object(json!({ "keep": text }), &["keep"])],
            },
            "pii_kind": {
                "enum": ["email", "phone", "name", "address", "birth_date", "national_id", "ip", "location", "financial",
                         "free_text", "mixed", "other"],
            },
            "pii_table": object(json!({ "kind": def("pii_kind"), "subject": def("step"), "path": text }), &["kind"]),
            "pii": { "oneOf": [def("pii_kind"), def("pii_table")] },
            "column": object(json!({
                "sealed": { "enum": ["rv1", "plain", "nonce_ct_tag", "rails", "cloak", "vault"] },
                "pii": { "oneOf": [def("pii"), { "type": "array", "items": def("pii") }] },
                "erase": def("erase"),
            }), &[]),
            "reference": object(json!({
                "columns": def("names"), "table": text, "unconstrained": { "type": "boolean" },
            }), &["columns", "table"]),
            "table": object(table(&text, def), &["scope"]),
        },
    })
}

fn table(text: &Value, def: impl Fn(&str) -> Value) -> Value {
    let list = |items: Value| json!({ "type": "array", "items": items });
    json!({
        "scope": def("scope"),
        "also": list(def("step")),
        "key": def("names"),
        "columns": list(text.clone()),
        "column": { "type": "object", "additionalProperties": def("column") },
        "references": list(def("reference")),
        "retention": object(json!({ "class": text, "age": text }), &["class", "age"]),
        "export": object(json!({ "file": text, "order": list(text.clone()) }), &["file", "order"]),
        "attachments": object(json!({ "column": text, "bucket_column": text }), &["column"]),
        "erase": def("erase"),
        "soft_delete": text,
    })
}

fn scope_table(text: &Value) -> Value {
    let parents = json!({ "type": "array", "items": { "$ref": "#/$defs/parent" } });
    object(
        json!({
            "column": text,
            "null": { "enum": ["everyone", "nobody"] },
            "path": { "type": "array", "items": { "$ref": "#/$defs/step" }, "minItems": 1, "maxItems": 4 },
            "reverse": parents,
            "polymorphic": object(json!({
                "type_column": text, "id_column": text,
                "of": { "type": "object", "additionalProperties": text },
            }), &["type_column", "id_column", "of"]),
            "shared": parents,
            "ignored": text,
        }),
        &[],
    )
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}
