//! The API's OpenAPI document: it is the router's, it is checked in, and answers are as it says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::cluster::Cluster;

const METHODS: [&str; 5] = ["delete", "get", "patch", "post", "put"];
/// Not the scheduler's.
const OF_THE_GATEWAY: &str = "/serving-endpoints/";

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(scheduler::rest::openapi::document)
}

#[test]
fn the_checked_in_document_is_the_one_that_the_code_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let made = serde_json::to_string_pretty(document()).expect("JSON") + "\n";
    if std::env::var_os("STOKEHOLD_WRITE_DOCS").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let kept = std::fs::read_to_string(&path).expect("docs/openapi.json");
    assert!(
        kept == made,
        "docs/openapi.json is not up to date: run `make docs`"
    );
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_is_complete() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    found.insert(reference);
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(document(), &mut found);
    assert!(found.len() > 30, "{found:?}");
    for reference in found {
        assert!(document().pointer(&reference[1..]).is_some(), "{reference}");
    }
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations() {
        let id = operation["operationId"].as_str().expect("an id");
        assert!(ids.insert(id.to_owned()), "{id}");
        assert_ne!(operation["summary"], "", "{method} {path}");
    }
}

#[tokio::test]
async fn every_route_is_in_the_document_with_the_role_that_it_needs() {
    let cluster = Cluster::start().await;
    let reader = cluster.token("reader", "query").await;
    let manager = cluster.token("manager", "manage").await;
    let mut routed = BTreeSet::new();
    for path in scheduler::rest::paths() {
        for method in METHODS {
            let of_method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("valid");
            let asked = path
                .replace("{digest}", &"0".repeat(64))
                .replace("{id}", &"0".repeat(16));
            let asked = asked.replace(['{', '}'], "");
            let (status, _) = cluster.call("", of_method.clone(), &asked, None).await;
            if status == StatusCode::METHOD_NOT_ALLOWED {
                continue;
            }
            routed.insert((path.clone(), method.to_owned()));
            let role = document()["paths"][&path][method]["x-stokehold-role"].clone();
            let without = status == StatusCode::UNAUTHORIZED;
            assert_eq!(
                without,
                role != "nobody",
                "{method} {path}: {status}, {role}"
            );
            for (token, rank) in [(&reader, 0), (&manager, 1)] {
                let (status, _) = cluster.call(token, of_method.clone(), &asked, None).await;
                let needs = match role.as_str() {
                    Some("admin") => 2,
                    Some("manage") => 1,
                    _ => 0,
                };
                let refused = status == StatusCode::FORBIDDEN;
                assert_eq!(refused, rank < needs, "{method} {path}: {status}, {role}");
            }
        }
    }
    let documented: BTreeSet<(String, String)> = operations()
        .map(|(path, method, _)| (path.clone(), method.clone()))
        .filter(|(path, _)| !path.starts_with(OF_THE_GATEWAY))
        .collect();
    assert_eq!(routed, documented, "the router's routes and the document's");
}

#[tokio::test]
async fn the_document_is_served_to_everybody() {
    let cluster = Cluster::start().await;
    let path = "/api/stokehold/v1/openapi.json";
    let (status, body) = cluster.call("", Method::GET, path, None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(&body, document());
}

#[test]
fn an_answer_that_is_not_as_documented_is_found() {
    let whoami = "/api/stokehold/v1/whoami";
    let good = json!({"id": "0000000000000001", "name": "x", "role": "admin"});
    let check = |body: &Value| check("get", whoami, 200, body);
    check(&good).expect("as documented");
    for (field, value) in [
        ("role", json!("king")),
        ("name", json!(1)),
        ("more", json!(1)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        check(&bad).expect_err(field);
    }
    check(&json!({"id": "0000000000000001", "name": "x"})).expect_err("no role");
}

fn operations() -> impl Iterator<Item = (&'static String, &'static String, &'static Value)> {
    let paths = document()["paths"].as_object().expect("paths").iter();
    paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods").iter();
        methods.map(move |(method, operation)| (path, method, operation))
    })
}

/// Whether an answer is one that the document tells of. What no route answers is none of its.
pub(crate) fn check(method: &str, path: &str, status: u16, body: &Value) -> Result<(), String> {
    let path = path.split('?').next().unwrap_or(path);
    let fits = |template: &str| {
        let (mut parts, mut given) = (template.split('/'), path.split('/'));
        loop {
            match (parts.next(), given.next()) {
                (None, None) => return true,
                (Some(part), Some(given)) if part == given || part.starts_with('{') => {}
                _ => return false,
            }
        }
    };
    let exact = operations().find(|(template, of, _)| *template == path && *of == method);
    let found = exact.or_else(|| operations().find(|(t, of, _)| fits(t) && *of == method));
    let Some((_, _, operation)) = found else {
        return Ok(());
    };
    // Failures of our own are told where they are no surprise.
    let response = &operation["responses"][status.to_string()];
    let response = resolved(response)?;
    let schema = &response["content"]["application/json"]["schema"];
    if schema.is_null() {
        return Err(format!(
            "{method} {path}: status {status} is not documented"
        ));
    }
    conforms(schema, body).map_err(|problem| format!("{method} {path} {status}: {problem}"))
}

fn resolved(value: &'static Value) -> Result<&'static Value, String> {
    match value.get("$ref").and_then(Value::as_str) {
        None => Ok(value),
        Some(reference) => {
            let target = document().pointer(&reference[1..]);
            resolved(target.ok_or_else(|| format!("{reference} leads nowhere"))?)
        }
    }
}

/// The part of JSON Schema that the document uses; a keyword that is not known here is an error. A
/// field that is not named is one, too: an answer must hold nothing that is not documented.
fn conforms(schema: &'static Value, value: &Value) -> Result<(), String> {
    if schema == &Value::Bool(true) {
        return Ok(());
    }
    let keywords = schema.as_object().ok_or("a schema is an object")?;
    for (keyword, argument) in keywords {
        match keyword.as_str() {
            "description" | "title" | "default" | "format" | "pattern" | "minimum" | "maximum" => {}
            "$ref" => conforms(resolved(schema)?, value)?,
            "type" => has_type(argument, value)?,
            "enum" if argument.as_array().is_some_and(|all| all.contains(value)) => {}
            "const" if argument == value => {}
            "enum" | "const" => return Err(format!("{value} is not of {argument}")),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    conforms(argument, item)?;
                }
            }
            "anyOf" | "oneOf" => {
                let mut all = argument.as_array().into_iter().flatten();
                if !all.any(|one| conforms(one, value).is_ok()) {
                    return Err(format!("{value} is none of {argument}"));
                }
            }
            "allOf" => {
                for one in argument.as_array().into_iter().flatten() {
                    conforms(one, value)?;
                }
            }
            "required" => {
                for name in argument.as_array().into_iter().flatten() {
                    let name = name.as_str().ok_or("a name")?;
                    if value.is_object() && value.get(name).is_none() {
                        return Err(format!("{name} is missing in {value}"));
                    }
                }
            }
            "properties" | "additionalProperties" => {}
            other => return Err(format!("the keyword {other} is not known to this test")),
        }
    }
    let none = Map::new();
    let known = keywords.get("properties").and_then(Value::as_object);
    let more = keywords.get("additionalProperties");
    for (name, field) in value.as_object().unwrap_or(&none) {
        match (known.and_then(|known| known.get(name)), more) {
            (Some(schema), _) => conforms(schema, field).map_err(|e| format!("{name}: {e}"))?,
            (None, Some(Value::Bool(false))) => return Err(format!("{name} is not documented")),
            (None, Some(schema)) => conforms(schema, field)?,
            (None, None) if known.is_some() => return Err(format!("{name} is not documented")),
            (None, None) => {}
        }
    }
    Ok(())
}

fn has_type(argument: &Value, value: &Value) -> Result<(), String> {
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    let fits = match argument {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        kind => kind.as_str().is_some_and(is),
    };
    fits.then_some(())
        .ok_or(format!("{value} is not of type {argument}"))
}
