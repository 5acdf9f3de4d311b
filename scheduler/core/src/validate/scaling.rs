//! Sizing: from the vendor's units of concurrency, and our own knobs, to bounds in replicas.

use shared::api::serving::{ServedEntityInput, StokeholdEntity};
use shared::spec::{DEFAULT_TARGET_CONCURRENCY, Scaling, Sizing};

use super::shown;
use crate::error::ApiError;

/// The vendor's sizes: lower and upper bound of concurrency.
const SIZES: [(&str, u32, u32); 3] = [("Small", 4, 4), ("Medium", 8, 16), ("Large", 16, 64)];
/// Replicas at most where neither a size nor a maximum says it.
const DEFAULT_MAX_REPLICAS: u32 = 4;
/// The vendor counts concurrency in fours.
const UNIT: u32 = 4;
/// The vendor's limit for one entity.
const MAX_CONCURRENCY: u32 = 1024;
const MAX_REPLICAS: u32 = 1000;
/// An hour: no request at a replica lasts longer.
const MAX_OBJECTIVE_MS: u32 = 3_600_000;

pub(crate) fn checked(
    input: &ServedEntityInput,
    field: &str,
) -> Result<(Scaling, Sizing), ApiError> {
    let ours = input.stokehold.clone().unwrap_or_default();
    let scale_to_zero = input.scale_to_zero_enabled.unwrap_or(false);
    let pinned = pinned_target(&ours, field)?;
    let (sizing, units) = sizing(input, scale_to_zero, field)?;
    // A size is in requests at once. Its lower bound is kept as that, and becomes replicas by what
    // each of them turns out to take; the upper one bounds what may be spent, before anybody knows
    // that: in the vendor's units, unless a target is given.
    let unit = pinned.unwrap_or(DEFAULT_TARGET_CONCURRENCY);
    let (least, sized_max) = units.map_or((0, DEFAULT_MAX_REPLICAS), |(least, most)| {
        (least, most.div_ceil(unit).max(1))
    });
    let provisioned_concurrency = if scale_to_zero { 0 } else { least };
    let sized_min = match pinned {
        _ if scale_to_zero => 0,
        Some(target) => least.div_ceil(target).max(1),
        None => 1,
    };
    let min_replicas = match (ours.min_replicas, ours.max_replicas) {
        (Some(min), _) => min,
        // An own maximum below the size's minimum says that less is wanted.
        (None, Some(max)) => sized_min.min(max),
        (None, None) => sized_min,
    };
    let max_replicas = ours.max_replicas.unwrap_or(sized_max.max(min_replicas));
    let refuse = |name: &str, problem: String| {
        Err(ApiError::invalid(format!(
            "{field}.stokehold.{name}: {problem}"
        )))
    };
    if !(1..=MAX_REPLICAS).contains(&max_replicas) {
        return refuse(
            "max_replicas",
            format!("expected 1 to {MAX_REPLICAS}, got {max_replicas}"),
        );
    }
    if min_replicas > max_replicas {
        return refuse(
            "min_replicas",
            format!("{min_replicas} is more than max_replicas, {max_replicas}"),
        );
    }
    if min_replicas == 0 && !scale_to_zero {
        return refuse(
            "min_replicas",
            "0 needs scale_to_zero_enabled to be true".into(),
        );
    }
    if min_replicas > 0 && scale_to_zero {
        return refuse(
            "min_replicas",
            format!("{min_replicas} contradicts scale_to_zero_enabled, send 0 or leave it out"),
        );
    }
    let scaling = Scaling {
        min_replicas,
        max_replicas,
        scale_to_zero,
        provisioned_concurrency,
        pinned_target: pinned,
        latency_objective_ms: latency_objective(&ours, field)?,
    };
    Ok((scaling, sizing))
}

fn pinned_target(ours: &StokeholdEntity, field: &str) -> Result<Option<u32>, ApiError> {
    match ours.target_concurrency {
        Some(target) if !(1..=MAX_CONCURRENCY).contains(&target) => {
            Err(ApiError::invalid(format!(
                "{field}.stokehold.target_concurrency: expected 1 to {MAX_CONCURRENCY}, got {target}; leave \
                 it out to have it learned"
            )))
        }
        given => Ok(given),
    }
}

fn latency_objective(ours: &StokeholdEntity, field: &str) -> Result<Option<u32>, ApiError> {
    match ours.latency_objective_ms {
        Some(ms) if !(1..=MAX_OBJECTIVE_MS).contains(&ms) => Err(ApiError::invalid(format!(
            "{field}.stokehold.latency_objective_ms: expected 1 to {MAX_OBJECTIVE_MS}, got {ms}"
        ))),
        given => Ok(given),
    }
}

/// How sizing was given, and its bounds of concurrency.
fn sizing(
    input: &ServedEntityInput,
    scale_to_zero: bool,
    field: &str,
) -> Result<(Sizing, Option<(u32, u32)>), ApiError> {
    let bounds = (
        input.min_provisioned_concurrency,
        input.max_provisioned_concurrency,
    );
    let size = input.workload_size.as_deref().filter(|s| !s.is_empty());
    let (min, max) = match (size, bounds) {
        (Some(_), (Some(_), _) | (_, Some(_))) => {
            return Err(ApiError::invalid(format!(
                "{field}.workload_size: excludes min_ and max_provisioned_concurrency"
            )));
        }
        (Some(size), (None, None)) => {
            let known = SIZES.iter().find(|(name, ..)| *name == size);
            let (name, min, max) = known.ok_or_else(|| {
                ApiError::invalid(format!(
                    "{field}.workload_size: expected Small, Medium or Large, got {}",
                    shown(size)
                ))
            })?;
            return Ok((Sizing::WorkloadSize((*name).into()), Some((*min, *max))));
        }
        (None, (None, None)) => return Ok((Sizing::Unstated, None)),
        (None, (Some(min), Some(max))) => (min, max),
        (None, (Some(_), None)) => {
            return Err(ApiError::invalid(format!(
                "{field}.max_provisioned_concurrency: is missing beside min_provisioned_concurrency"
            )));
        }
        (None, (None, Some(_))) => {
            return Err(ApiError::invalid(format!(
                "{field}.min_provisioned_concurrency: is missing beside max_provisioned_concurrency"
            )));
        }
    };
    for (name, value) in [("min", min), ("max", max)] {
        if value % UNIT != 0 || value > MAX_CONCURRENCY {
            return Err(ApiError::invalid(format!(
                "{field}.{name}_provisioned_concurrency: expected a multiple of {UNIT} up to {MAX_CONCURRENCY}, got {value}"
            )));
        }
    }
    if min == 0 && !scale_to_zero {
        return Err(ApiError::invalid(format!(
            "{field}.min_provisioned_concurrency: 0 needs scale_to_zero_enabled to be true"
        )));
    }
    if max == 0 || min > max {
        return Err(ApiError::invalid(format!(
            "{field}.max_provisioned_concurrency: expected at least {}, got {max}",
            min.max(UNIT)
        )));
    }
    Ok((Sizing::Concurrency { min, max }, Some((min, max))))
}
