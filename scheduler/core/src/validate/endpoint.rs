//! The fields of an endpoint outside its config.

use serde_json::Value;
use shared::api::serving::{CreateEndpoint, TagInput};
use shared::ids::EndpointName;
use shared::spec::Tag;

use super::{given, refuse_given, shown};
use crate::error::ApiError;

/// Names that are parts of paths in the vendor's API or the OpenAI form of it.
const RESERVED: [&str; 5] = ["pt", "chat", "completions", "embeddings", "responses"];
const MAX_TAGS: usize = 64;
const MAX_TAG_BYTES: usize = 127;
const MAX_DESCRIPTION_BYTES: usize = 1024;

pub(crate) struct Fields {
    pub name: EndpointName,
    pub description: Option<String>,
    pub tags: Vec<Tag>,
}

pub(crate) fn checked(input: &CreateEndpoint) -> Result<Fields, ApiError> {
    let name = EndpointName::parse(&input.name)
        .map_err(|problem| ApiError::invalid(format!("name: {problem}")))?;
    if RESERVED.contains(&name.as_str()) {
        return Err(ApiError::invalid(format!(
            "name: {name} is reserved for a path of the API, choose another"
        )));
    }
    if input.route_optimized == Some(true) {
        return Err(ApiError::invalid(
            "route_optimized: not supported here, leave it out or send false",
        ));
    }
    let limits = input.rate_limits.clone().map(Value::Array);
    refuse_given("rate_limits", limits.as_ref())?;
    refuse_given("telemetry_config", input.telemetry_config.as_ref())?;
    refuse_given("email_notifications", input.email_notifications.as_ref())?;
    check_ai_gateway(input.ai_gateway.as_ref())?;
    let description = input.description.clone().filter(|text| !text.is_empty());
    if description.as_ref().map_or(0, String::len) > MAX_DESCRIPTION_BYTES {
        return Err(ApiError::invalid(format!(
            "description: at most {MAX_DESCRIPTION_BYTES} bytes"
        )));
    }
    Ok(Fields {
        name,
        description,
        tags: tags(input.tags.as_deref().unwrap_or_default())?,
    })
}

/// Usage is always counted, so tracking it may be asked for; nothing else of it exists here.
fn check_ai_gateway(input: Option<&Value>) -> Result<(), ApiError> {
    let Some(Value::Object(fields)) = input else {
        return refuse_given("ai_gateway", input);
    };
    for (field, value) in fields {
        if field != "usage_tracking_config" && given(Some(value)) {
            return Err(ApiError::invalid(format!(
                "ai_gateway.{field}: not supported here, leave it out"
            )));
        }
    }
    Ok(())
}

fn tags(input: &[TagInput]) -> Result<Vec<Tag>, ApiError> {
    if input.len() > MAX_TAGS {
        return Err(ApiError::invalid(format!(
            "tags: at most {MAX_TAGS}, got {}",
            input.len()
        )));
    }
    let mut tags: Vec<Tag> = Vec::new();
    for tag in input {
        let value = tag.value.clone().unwrap_or_default();
        let fits = |text: &str| text.len() <= MAX_TAG_BYTES && !text.chars().any(char::is_control);
        if tag.key.is_empty() || !fits(&tag.key) || !fits(&value) {
            return Err(ApiError::invalid(format!(
                "tags: {} needs a key of 1 and a value of 0 to {MAX_TAG_BYTES} bytes without control characters",
                shown(&tag.key)
            )));
        }
        if tags.iter().any(|known| known.key == tag.key) {
            return Err(ApiError::invalid(format!(
                "tags: {} stands twice",
                shown(&tag.key)
            )));
        }
        tags.push(Tag {
            key: tag.key.clone(),
            value,
        });
    }
    Ok(tags)
}
