//! Checks what people send to the serving-endpoints API. Everything that is wrong is refused by the
//! name of its field; what other products need and this one has not is refused rather than ignored.

pub(crate) mod config;
pub(crate) mod endpoint;
pub(crate) mod entity;
pub(crate) mod scaling;
pub(crate) mod traffic;

use serde_json::Value;

use crate::error::ApiError;

/// Whether a field says something: null, empty, false and zero are as good as absent.
fn given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => map.values().any(|value| given(Some(value))),
    }
}

fn refuse_given(field: &str, value: Option<&Value>) -> Result<(), ApiError> {
    if given(value) {
        return Err(ApiError::invalid(format!(
            "{field}: not supported here, leave it out"
        )));
    }
    Ok(())
}

/// A text for a message, cut so that no input makes an answer long.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    format!("{cut:?}")
}
