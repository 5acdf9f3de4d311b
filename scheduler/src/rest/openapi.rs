//! The OpenAPI document of the API, made from the types that handlers take and answer.
//!
//! `docs/openapi.json` is a copy of it (`make docs` writes it). A test compares the document's routes
//! with the router's, and answers with its schemas: a route that is added here or there alone fails.

mod operations;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use shared::api::ErrorBody;

const SCHEMAS: &str = "/components/schemas";

/// `GET /api/stokehold/v1/openapi.json`: for everybody, as it tells nothing of the cluster.
pub(super) async fn serve() -> Response {
    let text = serde_json::to_string(&document()).expect("texts and numbers");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The whole document. Its keys are sorted, so that two builds give the same text.
pub fn document() -> Value {
    let mut doc = Document::new();
    operations::serving(&mut doc);
    operations::stokehold(&mut doc);
    operations::others(&mut doc);
    doc.finish()
}

/// Who may call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Everybody,
    Query,
    Manage,
    Admin,
}

struct Document {
    inputs: SchemaGenerator,
    outputs: SchemaGenerator,
    paths: Map<String, Value>,
}

/// One method of one path.
struct Operation {
    method: &'static str,
    path: String,
    access: Access,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    /// Content of the answer with status 200; `None` where it is never given.
    answer: Option<Value>,
    /// What can be refused beyond what every route can.
    refusals: Vec<u16>,
}

impl Operation {
    fn new(method: &'static str, path: impl Into<String>, access: Access) -> Self {
        let path = path.into();
        let names = path.split('/').filter_map(|part| {
            let name = part.strip_prefix('{')?.strip_suffix('}')?;
            Some(json!({
                "name": name, "in": "path", "required": true, "schema": {"type": "string"},
            }))
        });
        Self {
            method,
            parameters: names.collect(),
            access,
            summary: "",
            body: None,
            answer: Some(content("application/json", json!({"type": "object"}))),
            refusals: if path.contains('{') {
                vec![404]
            } else {
                vec![]
            },
            path,
        }
    }

    fn says(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    fn query(mut self, name: &str, kind: &str, description: &str) -> Self {
        self.parameters.push(json!({
            "name": name, "in": "query", "required": false, "description": description,
            "schema": {"type": kind},
        }));
        self
    }

    fn takes<T: JsonSchema>(self, doc: &mut Document) -> Self {
        let schema = doc.inputs.subschema_for::<T>().to_value();
        self.takes_content(content("application/json", schema))
    }

    fn takes_bytes(self) -> Self {
        self.takes_content(content("application/octet-stream", json!({})))
    }

    fn takes_content(mut self, content: Value) -> Self {
        self.body = Some(json!({"required": true, "content": content}));
        self.refusals.push(413);
        self
    }

    fn answers<T: JsonSchema>(mut self, doc: &mut Document) -> Self {
        let schema = doc.outputs.subschema_for::<T>().to_value();
        self.answer = Some(content("application/json", schema));
        self
    }

    /// JSON lines of this type, too.
    fn or_lines<T: JsonSchema>(mut self, doc: &mut Document) -> Self {
        let schema = doc.outputs.subschema_for::<T>().to_value();
        let lines = content("application/x-ndjson", schema);
        if let (Some(Value::Object(answer)), Value::Object(lines)) = (&mut self.answer, lines) {
            answer.extend(lines);
        }
        self
    }

    fn answers_content(mut self, content: Value) -> Self {
        self.answer = Some(content);
        self
    }

    fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend(statuses);
        self
    }

    /// A route of Databricks' that Stokehold does not have.
    fn not_implemented(mut self) -> Self {
        self.answer = None;
        self.summary = "Not supported: answered 501.";
        self.refusals = vec![501];
        self
    }

    fn render(&self) -> Value {
        let mut responses = Map::new();
        if let Some(content) = &self.answer {
            let answer = json!({"description": "Done.", "content": content});
            responses.insert("200".into(), answer);
        }
        let mut refusals = vec![400, 503];
        if self.access != Access::Everybody {
            refusals.extend([401, 403]);
        }
        refusals.extend(&self.refusals);
        for status in refusals {
            let name = format!("#/components/responses/{}", response_name(status));
            responses.insert(status.to_string(), json!({"$ref": name}));
        }
        let (security, role) = match self.access {
            Access::Everybody => (json!([]), "nobody"),
            Access::Query => (json!([{"token": []}]), "query"),
            Access::Manage => (json!([{"token": []}]), "manage"),
            Access::Admin => (json!([{"token": []}]), "admin"),
        };
        let mut operation = json!({
            "operationId": self.id(),
            "summary": self.summary,
            "security": security,
            "x-stokehold-role": role,
            "responses": responses,
        });
        if !self.parameters.is_empty() {
            operation["parameters"] = json!(self.parameters);
        }
        if let Some(body) = &self.body {
            operation["requestBody"] = body.clone();
        }
        operation
    }

    /// `get_api_stokehold_v1_nodes_name`.
    fn id(&self) -> String {
        let words = self
            .path
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty());
        let end = self.path.ends_with('/').then_some("slash");
        let words: Vec<&str> = [self.method].into_iter().chain(words).chain(end).collect();
        words.join("_")
    }
}

impl Document {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
            })
        };
        let mut outputs = settings().for_serialize().into_generator();
        outputs.subschema_for::<ErrorBody>();
        Self {
            inputs: settings().for_deserialize().into_generator(),
            outputs,
            paths: Map::new(),
        }
    }

    fn add(&mut self, operation: &Operation) {
        let path = self.paths.entry(operation.path.clone());
        let path = path.or_insert_with(|| json!({}));
        path[operation.method] = operation.render();
    }

    fn finish(mut self) -> Value {
        let mut schemas = self.outputs.take_definitions(true);
        for (name, schema) in self.inputs.take_definitions(true) {
            let known = schemas.insert(name.clone(), schema.clone());
            // One name is one schema: a type that is read otherwise than it is written needs two.
            assert!(
                known.is_none_or(|known| known == schema),
                "{name} is read otherwise than it is written"
            );
        }
        let responses: Map<String, Value> = REFUSALS
            .iter()
            .map(|(status, description)| {
                let schema = json!({"$ref": "#/components/schemas/ErrorBody"});
                let response = json!({
                    "description": description,
                    "content": content("application/json", schema),
                });
                (response_name(*status), response)
            })
            .collect();
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Stokehold",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Serves machine-learning models. Every answer carries `x-request-id`.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [
                {"url": "https://localhost:8443", "description": "A gateway: everything."},
                {"url": "https://localhost:7443", "description": "The scheduler: `/api/` alone."},
            ],
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "responses": responses,
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "`stokehold token create NAME --role query|manage|admin`",
                    },
                },
            },
        })
    }
}

/// As docs/api.md has them.
const REFUSALS: [(u16, &str); 14] = [
    (
        400,
        "A field is wrong, the request is malformed, or the name is taken.",
    ),
    (401, "No token, or one that is not known."),
    (403, "The token's role is not enough."),
    (404, "What was named does not exist."),
    (409, "An update is under way, or something is in use."),
    (413, "The body is over the limit."),
    (415, "The body is not JSON."),
    (
        429,
        "Every slot is taken and the queue is full; `Retry-After` says when.",
    ),
    (500, "A failure of the scheduler's own."),
    (501, "A route of Databricks' that Stokehold does not have."),
    (502, "The replica died while it worked on the request."),
    (
        503,
        "Not now: the scheduler is stopping, or no replica became ready in time.",
    ),
    (504, "No answer within the endpoint's time-out."),
    (405, "The route knows other methods, named in `Allow`."),
];

fn response_name(status: u16) -> String {
    format!("Error{status}")
}

fn content(media_type: &str, schema: Value) -> Value {
    json!({media_type: {"schema": schema}})
}
