//! One served entity: which model, on which runtime, with which resources.

use std::collections::BTreeMap;

use shared::api::serving::{ServedEntityInput, StokeholdEntity};
use shared::ids::{EntityName, ModelName, ModelRef, RuntimeName};
use shared::manifest::Description;
use shared::runtime::Resources;
use shared::spec::ServedEntity;
use shared::units::Bytes;

use super::config::Fleet;
use super::{refuse_given, scaling, shown};
use crate::error::ApiError;
use crate::registry::ModelVersion;
use crate::settings::WorkloadType;

const DEFAULT_WORKLOAD_TYPE: &str = "CPU";
/// The runtime of models that MLflow wrote.
const MLFLOW: &str = "mlflow";
const MAX_VARIABLES: usize = 64;
const MAX_ENVIRONMENT_BYTES: usize = 4 << 10;

/// `field` names the entity in messages: `served_entities[0]`.
pub(crate) fn checked(
    fleet: &Fleet<'_>,
    input: &ServedEntityInput,
    field: &str,
) -> Result<ServedEntity, ApiError> {
    refuse_other_products(input, field)?;
    let model = model(fleet, input, field)?;
    let name = name(input, model, field)?;
    let ours = input.stokehold.clone().unwrap_or_default();
    let runtime = runtime(fleet, &ours, model, field)?;
    let (workload_type, class) = workload(fleet, input, field)?;
    let resources = resources(fleet, &ours, &runtime, class, field)?;
    check_memory(model, &runtime, &resources, field)?;
    let environment = environment(input.environment_vars.as_ref(), field)?;
    let (scaling, sizing) = scaling::checked(input, field)?;
    Ok(ServedEntity {
        name,
        model: model.name.clone(),
        model_version: model.version,
        manifest: model.manifest,
        runtime,
        resources,
        environment,
        scaling,
        sizing,
        workload_type,
    })
}

fn refuse_other_products(input: &ServedEntityInput, field: &str) -> Result<(), ApiError> {
    let fields = [
        ("external_model", &input.external_model),
        ("foundation_model", &input.foundation_model),
        ("instance_profile_arn", &input.instance_profile_arn),
        ("provisioned_model_units", &input.provisioned_model_units),
        (
            "min_provisioned_throughput",
            &input.min_provisioned_throughput,
        ),
        (
            "max_provisioned_throughput",
            &input.max_provisioned_throughput,
        ),
    ];
    for (name, value) in fields {
        refuse_given(&format!("{field}.{name}"), value.as_ref())?;
    }
    if input.burst_scaling_enabled == Some(true) {
        return Err(ApiError::invalid(format!(
            "{field}.burst_scaling_enabled: not supported here, leave it out or send false"
        )));
    }
    Ok(())
}

fn model<'a>(
    fleet: &Fleet<'a>,
    input: &ServedEntityInput,
    field: &str,
) -> Result<&'a ModelVersion, ApiError> {
    let name = either(
        [&input.entity_name, &input.model_name],
        ["entity_name", "model_name"],
        field,
    )?;
    let name = name.ok_or_else(|| {
        ApiError::invalid(format!(
            "{field}.entity_name: is missing, name a registered model"
        ))
    })?;
    let name = ModelName::parse(name)
        .map_err(|problem| ApiError::invalid(format!("{field}.entity_name: {problem}")))?;
    let version = either(
        [&input.entity_version, &input.model_version],
        ["entity_version", "model_version"],
        field,
    )?;
    let version = version.ok_or_else(|| {
        ApiError::invalid(format!(
            "{field}.entity_version: is missing, name a version of {name}"
        ))
    })?;
    let version: u32 = version.parse().ok().filter(|it| *it > 0).ok_or_else(|| {
        ApiError::invalid(format!(
            "{field}.entity_version: expected a whole number from 1 on, got {}",
            shown(version)
        ))
    })?;
    fleet
        .registry
        .resolve(&ModelRef::Version { name, version })
        .map_err(|refusal| ApiError {
            message: format!("{field}.entity_name: {}", refusal.message),
            ..refusal
        })
}

/// A value in new words or old; both only where they agree.
fn either<'a>(
    values: [&'a Option<String>; 2],
    names: [&str; 2],
    field: &str,
) -> Result<Option<&'a str>, ApiError> {
    let [new, old] = values.map(|value| value.as_deref().filter(|text| !text.is_empty()));
    match (new, old) {
        (Some(new), Some(old)) if new != old => Err(ApiError::invalid(format!(
            "{field}.{}: differs from {}, give one of them",
            names[1], names[0]
        ))),
        (new, old) => Ok(new.or(old)),
    }
}

/// The name as given, or `MODEL-VERSION` by the last part of a three-part model name.
fn name(
    input: &ServedEntityInput,
    model: &ModelVersion,
    field: &str,
) -> Result<EntityName, ApiError> {
    let given = input.name.as_deref().filter(|text| !text.is_empty());
    let text = given.map_or_else(|| default_name(&model.name, model.version), str::to_owned);
    EntityName::parse(&text)
        .map_err(|problem| ApiError::invalid(format!("{field}.name: {problem}")))
}

fn default_name(model: &ModelName, version: u32) -> String {
    let parts: Vec<&str> = model.as_str().split('.').collect();
    let last = match parts[..] {
        [_, _, last] if !last.is_empty() => last,
        _ => model.as_str(),
    };
    let plain: String = last
        .chars()
        .map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '_' | '-' => c,
            _ => '_',
        })
        .collect();
    let version = format!("-{version}");
    let room = 63 - version.len();
    format!("{}{version}", &plain[..plain.len().min(room)])
}

fn runtime(
    fleet: &Fleet<'_>,
    ours: &StokeholdEntity,
    model: &ModelVersion,
    field: &str,
) -> Result<RuntimeName, ApiError> {
    let templates = &fleet.settings.templates;
    let known = || {
        let names: Vec<&str> = templates.keys().map(RuntimeName::as_str).collect();
        if names.is_empty() {
            "none is installed".to_owned()
        } else {
            format!("known are {}", names.join(", "))
        }
    };
    let wanted = match ours.runtime.as_deref().filter(|text| !text.is_empty()) {
        Some(named) => named,
        None => chosen(&model.description).ok_or_else(|| {
            ApiError::invalid(format!(
                "{field}.stokehold.runtime: model {}/{} holds no MLmodel file to choose a runtime by: push \
                 the folder that MLflow's save_model wrote, or name one ({})",
                model.name,
                model.version,
                known()
            ))
        })?,
    };
    if wanted == MLFLOW {
        check_flavors(model, field)?;
    }
    let template = templates.iter().find(|(name, _)| name.as_str() == wanted);
    template.map(|(name, _)| name.clone()).ok_or_else(|| {
        ApiError::invalid(format!(
            "{field}.stokehold.runtime: there is no runtime {}, {}",
            shown(wanted),
            known()
        ))
    })
}

/// The runtime that a model's description asks for.
fn chosen(description: &Description) -> Option<&'static str> {
    (!description.flavors.is_empty()).then_some(MLFLOW)
}

/// MLflow's server loads a model by its python_function flavor and by nothing else.
fn check_flavors(model: &ModelVersion, field: &str) -> Result<(), ApiError> {
    let flavors = &model.description.flavors;
    if flavors.contains_key("python_function") {
        return Ok(());
    }
    let names: Vec<&str> = flavors.keys().map(String::as_str).collect();
    let (has, mend) = if names.is_empty() {
        (
            "holds no MLmodel file".to_owned(),
            "push the folder that MLflow's save_model wrote, or name another runtime",
        )
    } else {
        (
            format!("has only {}", names.join(", ")),
            "save it again with that flavor, or name another runtime",
        )
    };
    Err(ApiError::invalid(format!(
        "{field}.stokehold.runtime: {MLFLOW} serves the python_function flavor, and model {}/{} {has}: {mend}",
        model.name, model.version
    )))
}

/// MLflow's server reads all of a model into memory before it answers: one that is larger than the
/// limit would be killed at every start.
fn check_memory(
    model: &ModelVersion,
    runtime: &RuntimeName,
    resources: &Resources,
    field: &str,
) -> Result<(), ApiError> {
    let fits = model.size_bytes < resources.memory_bytes;
    if fits || resources.gpus > 0 || runtime.as_str() != MLFLOW {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{field}.stokehold.memory_bytes: model {}/{} has {} to load, and a replica may use {}: give it \
         more with stokehold.memory_bytes (--memory)",
        model.name,
        model.version,
        Bytes(model.size_bytes),
        Bytes(resources.memory_bytes)
    )))
}

fn workload(
    fleet: &Fleet<'_>,
    input: &ServedEntityInput,
    field: &str,
) -> Result<(String, WorkloadType), ApiError> {
    let given = input.workload_type.as_deref().filter(|t| !t.is_empty());
    let name = given.unwrap_or(DEFAULT_WORKLOAD_TYPE);
    let classes = &fleet.settings.workload_types;
    let class = classes.get(name).ok_or_else(|| {
        let known: Vec<&str> = classes.keys().map(String::as_str).collect();
        ApiError::invalid(format!(
            "{field}.workload_type: expected one of {}, got {}",
            known.join(", "),
            shown(name)
        ))
    })?;
    if class.gpus > 0 && (fleet.most_gpus)(class.gpu_memory_bytes) < class.gpus {
        return Err(ApiError::invalid(format!(
            "{field}.workload_type: {name} needs a node with {} GPUs of at least {} and none has reported any",
            class.gpus,
            Bytes(class.gpu_memory_bytes)
        )));
    }
    Ok((name.to_owned(), *class))
}

fn resources(
    fleet: &Fleet<'_>,
    ours: &StokeholdEntity,
    runtime: &RuntimeName,
    class: WorkloadType,
    field: &str,
) -> Result<Resources, ApiError> {
    let template = fleet.settings.templates.get(runtime);
    let template = template.ok_or_else(|| {
        ApiError::invalid(format!(
            "{field}.stokehold.runtime: there is no runtime {runtime}"
        ))
    })?;
    let share = class.share.max(1);
    let own = template.resources;
    let resources = Resources {
        memory_bytes: ours
            .memory_bytes
            .unwrap_or(own.memory_bytes.saturating_mul(u64::from(share))),
        cpu_millis: ours
            .cpu_millis
            .unwrap_or(own.cpu_millis.saturating_mul(share)),
        pids: own.pids,
        gpus: class.gpus.max(own.gpus),
    };
    match resources.problem() {
        Some(problem) => Err(ApiError::invalid(format!("{field}.stokehold.{problem}"))),
        None => Ok(resources),
    }
}

fn environment(
    given: Option<&BTreeMap<String, String>>,
    field: &str,
) -> Result<BTreeMap<String, String>, ApiError> {
    let environment = given.cloned().unwrap_or_default();
    let refuse = |problem: String| {
        Err(ApiError::invalid(format!(
            "{field}.environment_vars: {problem}"
        )))
    };
    if environment.len() > MAX_VARIABLES {
        return refuse(format!("at most {MAX_VARIABLES} variables"));
    }
    let bytes: usize = environment.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAX_ENVIRONMENT_BYTES {
        return refuse(format!(
            "at most {MAX_ENVIRONMENT_BYTES} bytes together, got {bytes}"
        ));
    }
    for (name, value) in &environment {
        let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !letters || name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
            return refuse(format!(
                "{} is no name of a variable: expected letters, digits and _, no digit first",
                shown(name)
            ));
        }
        if value.contains('\0') {
            return refuse(format!("the value of {name} holds a zero byte"));
        }
        if value.trim_start().starts_with("{{secrets/") {
            return refuse(format!(
                "the value of {name} refers to a secret, and there is no secret store here"
            ));
        }
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_name_is_the_last_of_three_parts_and_always_a_valid_name() {
        let name = |model: &str, version| {
            let model = ModelName::parse(model).expect("valid");
            let name = default_name(&model, version);
            assert!(EntityName::parse(&name).is_ok(), "{name}");
            name
        };
        assert_eq!(name("iris", 3), "iris-3");
        assert_eq!(name("a.b.iris", 3), "iris-3");
        assert_eq!(name("my.iris", 1), "my_iris-1");
        assert_eq!(name("a.b.", 1), "a_b_-1");
        assert_eq!(name(&"x".repeat(127), u32::MAX).len(), 63);
    }
}
