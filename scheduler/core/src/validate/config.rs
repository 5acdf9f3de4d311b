//! A config: which entities, and how the traffic is split over them. What a PUT leaves out is kept.

use shared::api::serving::{ConfigInput, ServedEntityInput};
use shared::spec::{Endpoint, EndpointConfig, ServedEntity, TrafficShare};

use super::{entity, refuse_given, shown, traffic};
use crate::error::ApiError;
use crate::registry::Registry;
use crate::settings::Settings;

/// The vendor's limit.
const MAX_ENTITIES: usize = 10;

/// What a config is checked against.
pub(crate) struct Fleet<'a> {
    pub registry: &'a Registry,
    pub settings: &'a Settings,
    /// The most GPUs with at least this much memory that one node has.
    pub most_gpus: &'a dyn Fn(u64) -> u32,
}

/// The endpoint's next config.
pub(crate) fn checked(
    fleet: &Fleet<'_>,
    endpoint: &Endpoint,
    input: &ConfigInput,
) -> Result<EndpointConfig, ApiError> {
    if let Some(name) = input.name.as_deref()
        && name != endpoint.name.as_str()
    {
        return Err(ApiError::invalid(format!(
            "config.name: {} is not this endpoint's name, {}",
            shown(name),
            endpoint.name
        )));
    }
    refuse_given(
        "auto_capture_config.enabled",
        (input.auto_capture_config.as_ref()).and_then(|config| config.get("enabled")),
    )?;
    // What serves; where nothing ever did, what was tried last.
    let pending = endpoint.pending.as_ref().map(|pending| &pending.config);
    let base = endpoint.active.as_ref().or(pending);
    let entities = match (inputs(input)?, base) {
        (Some(inputs), _) => entities(fleet, inputs)?,
        (None, Some(base)) if input.traffic_config.is_some() => base.entities.clone(),
        (None, Some(_)) => {
            return Err(ApiError::invalid(
                "served_entities: give these, or traffic_config, or both",
            ));
        }
        (None, None) => {
            return Err(ApiError::invalid(
                "served_entities: name at least one served entity",
            ));
        }
    };
    let traffic = match &input.traffic_config {
        Some(routes) => traffic::checked(&entities, routes)?,
        None => kept_traffic(&entities, base)?,
    };
    Ok(EndpointConfig {
        version: endpoint.last_config_version.saturating_add(1),
        entities,
        traffic,
    })
}

/// The entities as given, in new words or old; `None` when there are none.
fn inputs(input: &ConfigInput) -> Result<Option<&[ServedEntityInput]>, ApiError> {
    let some = |list: &'_ Option<Vec<ServedEntityInput>>| {
        list.as_ref().is_some_and(|list| !list.is_empty())
    };
    if some(&input.served_entities) && some(&input.served_models) {
        if input.served_entities != input.served_models {
            return Err(ApiError::invalid(
                "served_models: differs from served_entities, give one of them",
            ));
        }
        return Ok(input.served_entities.as_deref());
    }
    let list = if some(&input.served_models) {
        &input.served_models
    } else {
        &input.served_entities
    };
    // The official SDKs drop empty lists, so an empty one is an absent one.
    Ok(list.as_deref().filter(|list| !list.is_empty()))
}

fn entities(
    fleet: &Fleet<'_>,
    inputs: &[ServedEntityInput],
) -> Result<Vec<ServedEntity>, ApiError> {
    if inputs.len() > MAX_ENTITIES {
        return Err(ApiError::invalid(format!(
            "served_entities: at most {MAX_ENTITIES}, got {}",
            inputs.len()
        )));
    }
    let mut entities: Vec<ServedEntity> = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let entity = entity::checked(fleet, input, &format!("served_entities[{i}]"))?;
        if entities.iter().any(|known| known.name == entity.name) {
            return Err(ApiError::invalid(format!(
                "served_entities[{i}].name: {} stands twice",
                entity.name
            )));
        }
        entities.push(entity);
    }
    Ok(entities)
}

/// The split where none was given: all to the only entity, or as it was if the names are the same.
fn kept_traffic(
    entities: &[ServedEntity],
    base: Option<&EndpointConfig>,
) -> Result<Vec<TrafficShare>, ApiError> {
    if let [only] = entities {
        return Ok(vec![TrafficShare {
            entity: only.name.clone(),
            percent: 100,
        }]);
    }
    let old = base.map_or(&[][..], |base| &base.traffic);
    let shares: Option<Vec<TrafficShare>> = entities
        .iter()
        .map(|entity| {
            old.iter()
                .find(|share| share.entity == entity.name)
                .cloned()
        })
        .collect();
    let whole = |shares: &Vec<TrafficShare>| {
        shares.len() == old.len() && shares.iter().map(|share| share.percent).sum::<u32>() == 100
    };
    shares.filter(whole).ok_or_else(|| {
        ApiError::invalid(
            "traffic_config: several served entities need one, with percentages that sum to 100",
        )
    })
}
