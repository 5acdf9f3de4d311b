//! The body to send where none was given: one row made up from the model's signature. Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A larger tensor is not made up but given.
const MOST_NUMBERS: u64 = 100_000;

/// One input of MLflow's signature: a column, or a tensor.
#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    name: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, rename = "tensor-spec")]
    tensor: Option<TensorSpec>,
}

#[derive(Deserialize)]
struct TensorSpec {
    dtype: String,
    shape: Vec<i64>,
}

/// `inputs`: the signature's text. The error says what stands in the way.
pub(super) fn from_signature(inputs: &str) -> Result<Vec<u8>, String> {
    let inputs: Vec<Input> = serde_json::from_str(inputs)
        .map_err(|error| format!("the model's signature is not understood ({error})"))?;
    if inputs.is_empty() {
        return Err("the model's signature names no input".into());
    }
    let body = if inputs.iter().all(|input| input.kind == "tensor") {
        json!({ "inputs": tensors(&inputs)? })
    } else {
        table(&inputs)?
    };
    Ok(serde_json::to_vec(&body).expect("a JSON value is always text"))
}

fn table(inputs: &[Input]) -> Result<Value, String> {
    let row: Vec<Value> = inputs.iter().map(column).collect::<Result<_, _>>()?;
    let names: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(n, input)| input.name.clone().map_or(json!(n), Value::from))
        .collect();
    Ok(json!({"dataframe_split": {"columns": names, "data": [row]}}))
}

fn column(input: &Input) -> Result<Value, String> {
    match input.kind.as_str() {
        "double" | "float" => Ok(json!(0.5)),
        "integer" | "long" => Ok(json!(1)),
        "boolean" => Ok(json!(true)),
        "string" => Ok(json!("a")),
        "datetime" => Ok(json!("2026-01-01T00:00:00")),
        other => Err(format!(
            "no value is made up for input {:?} of type {other}",
            input.name.as_deref().unwrap_or_default()
        )),
    }
}

/// One tensor as it is, several by name.
fn tensors(inputs: &[Input]) -> Result<Value, String> {
    if let [only] = inputs
        && only.name.is_none()
    {
        return tensor(only);
    }
    let mut named = Map::new();
    for input in inputs {
        let name = input.name.clone().ok_or("a tensor has no name")?;
        named.insert(name, tensor(input)?);
    }
    Ok(Value::Object(named))
}

fn tensor(input: &Input) -> Result<Value, String> {
    let spec = input.tensor.as_ref().ok_or("a tensor has no shape")?;
    let number = match spec.dtype.as_str() {
        "float16" | "float32" | "float64" => json!(0.5),
        "int8" | "int16" | "int32" | "int64" | "uint8" | "uint16" | "uint32" | "uint64" => json!(1),
        "bool" => json!(true),
        other => return Err(format!("no value is made up for a tensor of {other}")),
    };
    // A size that is left open, as the batch's is, becomes one.
    let sizes = spec
        .shape
        .iter()
        .map(|size| u64::try_from(*size).unwrap_or(1));
    let count = sizes.clone().try_fold(1_u64, u64::checked_mul);
    if count.is_none_or(|count| count > MOST_NUMBERS) {
        return Err(format!(
            "a tensor of shape {:?} is too large to make up",
            spec.shape
        ));
    }
    let nested = sizes.rev().fold(number, |inner, size| {
        Value::Array(vec![inner; usize::try_from(size).unwrap_or(1)])
    });
    Ok(nested)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(inputs: &str) -> Value {
        let body = from_signature(inputs).expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }

    #[test]
    fn columns_become_a_row_of_their_types() {
        let body = made(
            r#"[{"type":"double","name":"length (cm)","required":true},
                {"type":"long","name":"n"},{"type":"string","name":"s"},{"type":"boolean","name":"b"}]"#,
        );
        let expected = json!({"dataframe_split": {
            "columns": ["length (cm)", "n", "s", "b"], "data": [[0.5, 1, "a", true]]}});
        assert_eq!(body, expected);
    }

    #[test]
    fn a_tensor_has_its_shape_with_one_where_it_is_open() {
        let one = made(r#"[{"type":"tensor","tensor-spec":{"dtype":"float64","shape":[-1,2,3]}}]"#);
        assert_eq!(one, json!({"inputs": [[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]]}));
        let two = made(
            r#"[{"type":"tensor","name":"a","tensor-spec":{"dtype":"int64","shape":[-1]}},
                {"type":"tensor","name":"b","tensor-spec":{"dtype":"bool","shape":[1]}}]"#,
        );
        assert_eq!(two, json!({"inputs": {"a": [1], "b": [true]}}));
    }

    #[test]
    fn what_cannot_be_made_up_is_said() {
        for (inputs, says) in [
            ("{}", "not understood"),
            ("[]", "no input"),
            (
                r#"[{"type":"object","name":"o"}]"#,
                "input \"o\" of type object",
            ),
            (r#"[{"type":"tensor"}]"#, "no shape"),
            (
                r#"[{"type":"tensor","tensor-spec":{"dtype":"float32","shape":[-1,9999,9999]}}]"#,
                "too large",
            ),
            (
                r#"[{"type":"tensor","tensor-spec":{"dtype":"object","shape":[1]}}]"#,
                "object",
            ),
        ] {
            let problem = from_signature(inputs).expect_err("refused");
            assert!(problem.contains(says), "{problem}");
        }
    }
}
