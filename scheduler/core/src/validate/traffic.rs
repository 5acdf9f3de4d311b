//! Traffic splits.

use shared::api::serving::{RouteInput, TrafficInput};
use shared::spec::{ServedEntity, TrafficShare};

use super::shown;
use crate::error::ApiError;

/// The share of each entity, in the entities' order. One that no route names gets 0 percent: it is
/// reached by its own route only.
pub(crate) fn checked(
    entities: &[ServedEntity],
    input: &TrafficInput,
) -> Result<Vec<TrafficShare>, ApiError> {
    let mut shares: Vec<TrafficShare> = entities
        .iter()
        .map(|entity| TrafficShare {
            entity: entity.name.clone(),
            percent: 0,
        })
        .collect();
    let mut named = Vec::new();
    for (i, route) in input.routes.iter().enumerate() {
        let field = format!("traffic_config.routes[{i}]");
        let name = entity_name(route, &field)?;
        let percent = percent(route, &field)?;
        let share = shares
            .iter_mut()
            .find(|share| share.entity.as_str() == name);
        let share = share.ok_or_else(|| {
            ApiError::invalid(format!(
                "{field}.served_entity_name: {} is no served entity of this config",
                shown(name)
            ))
        })?;
        if named.contains(&name) {
            return Err(ApiError::invalid(format!(
                "{field}.served_entity_name: {} stands twice",
                shown(name)
            )));
        }
        named.push(name);
        share.percent = percent;
    }
    let sum: u32 = shares.iter().map(|share| share.percent).sum();
    if sum != 100 {
        return Err(ApiError::invalid(format!(
            "traffic_config: percentages must sum to 100, these sum to {sum}"
        )));
    }
    Ok(shares)
}

fn entity_name<'a>(route: &'a RouteInput, field: &str) -> Result<&'a str, ApiError> {
    match (&route.served_entity_name, &route.served_model_name) {
        (Some(new), Some(old)) if new != old => Err(ApiError::invalid(format!(
            "{field}.served_model_name: differs from served_entity_name, give one of them"
        ))),
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Err(ApiError::invalid(format!(
            "{field}.served_entity_name: is missing"
        ))),
    }
}

/// A whole number of percent, as a number or a text: the vendor's own examples quote it.
fn percent(route: &RouteInput, field: &str) -> Result<u32, ApiError> {
    let text = route.traffic_percentage.as_deref().unwrap_or_default();
    let number: Option<f64> = text.trim().parse().ok();
    number
        .filter(|number| (0.0..=100.0).contains(number) && number.fract() == 0.0)
        .map(|number| number as u32)
        .ok_or_else(|| {
            ApiError::invalid(format!(
                "{field}.traffic_percentage: expected a whole number from 0 to 100, got {}",
                shown(text)
            ))
        })
}
