//! Reads a request's body: its rows, in any of MLflow's formats, and its `params`. Pure.

use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What one request asks for, beside an answer. What it names overrides the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Params {
    /// Sleep this long instead of the service time.
    pub(crate) sleep_ms: Option<u64>,
    pub(crate) cpu_ms: Option<u64>,
    /// Answer with this status and an MLflow error.
    pub(crate) status: Option<u16>,
    /// Never answer.
    pub(crate) hang: bool,
    /// End the program with this code, leaving everything as it is.
    pub(crate) exit: Option<u8>,
    /// Drop the connection instead of an answer.
    pub(crate) close: bool,
    /// Hold this much memory until the answer.
    pub(crate) alloc_mib: usize,
    /// Answer with the request's body.
    pub(crate) echo: bool,
    /// Answer in this many chunks.
    pub(crate) stream_chunks: Option<u32>,
    /// The pause before each of them.
    pub(crate) stream_interval_ms: u64,
    /// Answer with this many bytes.
    pub(crate) response_bytes: Option<u64>,
    /// Try to connect to this address by TCP, and answer with what came of it.
    pub(crate) connect: Option<SocketAddr>,
    /// Print this line.
    pub(crate) log: Option<String>,
}

/// A wrong request: the message of its 400.
pub(crate) type Refusal = String;

/// The body as an object.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(body)
        .map_err(|err| format!("the body is not a JSON object: {err}; send one with \"inputs\""))
}

/// Takes `params` out of the body.
pub(crate) fn params(body: &mut Map<String, Value>) -> Result<Params, Refusal> {
    match body.remove("params") {
        None | Some(Value::Null) => Ok(Params::default()),
        Some(value) => Params::deserialize(value).map_err(|err| format!("params: {err}")),
    }
}

const FORMATS: [&str; 4] = [
    "dataframe_split",
    "dataframe_records",
    "instances",
    "inputs",
];

/// One number per row: the sum of the row's numbers.
pub(crate) fn predictions(body: &Map<String, Value>) -> Result<Vec<f64>, Refusal> {
    let mut given = FORMATS
        .iter()
        .filter_map(|format| Some((*format, body.get(*format)?)));
    let Some((format, value)) = given.next() else {
        return Err(format!(
            "the body has no input: add one of {}",
            FORMATS.join(", ")
        ));
    };
    if let Some((second, _)) = given.next() {
        return Err(format!(
            "the body has two inputs, {format} and {second}: leave one out"
        ));
    }
    let rows = if format == "dataframe_split" {
        value.get("data")
    } else {
        Some(value)
    };
    match rows {
        Some(Value::Array(rows)) => Ok(rows.iter().map(sum).collect()),
        Some(Value::Object(columns)) if matches!(format, "instances" | "inputs") => {
            Ok(sums_of_columns(columns))
        }
        _ => Err(format!("{format}: must hold a list of rows")),
    }
}

fn sum(value: &Value) -> f64 {
    match value {
        Value::Number(number) => number.as_f64().unwrap_or_default(),
        Value::Array(values) => values.iter().map(sum).sum(),
        Value::Object(fields) => fields.values().map(sum).sum(),
        Value::Null | Value::Bool(_) | Value::String(_) => 0.0,
    }
}

/// Tensors by name: row n is the nth value of each. What is not a list belongs to the first row.
fn sums_of_columns(columns: &Map<String, Value>) -> Vec<f64> {
    let mut rows = Vec::new();
    for column in columns.values() {
        let values = match column {
            Value::Array(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        rows.resize(rows.len().max(values.len()), 0.0);
        for (row, value) in rows.iter_mut().zip(values) {
            *row += sum(value);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn predict(body: Value) -> Result<Vec<f64>, Refusal> {
        predictions(body.as_object().unwrap())
    }

    #[test]
    fn every_format_gives_one_sum_per_row() {
        for body in [
            json!({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3.5, "x"]]}}),
            json!({"dataframe_records": [{"a": 1, "b": 2}, {"a": 3.5, "b": null}]}),
            json!({"instances": [[1, 2], 3.5]}),
            json!({"inputs": [[[1], [2]], {"a": 3.5}]}),
            json!({"inputs": {"a": [1, 3.5], "b": [2]}}),
        ] {
            assert_eq!(predict(body.clone()), Ok(vec![3.0, 3.5]), "{body}");
        }
        assert_eq!(predict(json!({"inputs": []})), Ok(vec![]));
    }

    #[test]
    fn wrong_bodies_say_what_is_wrong() {
        assert!(object(b"[1]").unwrap_err().contains("not a JSON object"));
        assert!(
            predict(json!({"rows": []}))
                .unwrap_err()
                .contains("dataframe_split")
        );
        assert!(
            predict(json!({"inputs": [], "instances": []}))
                .unwrap_err()
                .contains("two inputs")
        );
        assert_eq!(
            predict(json!({"inputs": 3})),
            Err("inputs: must hold a list of rows".to_owned())
        );
        let mut body = object(b"{\"params\": {\"sleep\": 1}}").unwrap();
        assert!(
            params(&mut body)
                .unwrap_err()
                .starts_with("params: unknown field `sleep`")
        );
    }
}
