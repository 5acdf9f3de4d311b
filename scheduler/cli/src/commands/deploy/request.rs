//! From the command line to what the scheduler is asked for. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;

use shared::api::ModelVersionInfo;
use shared::api::serving::{ConfigInput, Detailed, ServedEntityInput, StokeholdEntity};
use shared::ids::ModelRef;

use super::DeployArgs;
use crate::exit::Stop;

/// Thousandths of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuMillis(pub(crate) u32);

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a number of cores: expected 2, 0.5 or 500m")]
pub(crate) struct InvalidCpu(String);

impl FromStr for CpuMillis {
    type Err = InvalidCpu;
    fn from_str(text: &str) -> Result<Self, InvalidCpu> {
        let invalid = || InvalidCpu(text.chars().take(80).collect());
        if let Some(millis) = text.strip_suffix('m') {
            return millis.parse().map(CpuMillis).map_err(|_| invalid());
        }
        let cores: f64 = text.parse().map_err(|_| invalid())?;
        let millis = (cores * 1000.0).round();
        if millis.is_finite() && (1.0..=f64::from(u32::MAX)).contains(&millis) {
            Ok(CpuMillis(millis as u32))
        } else {
            Err(invalid())
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnvironmentVariable {
    key: String,
    value: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not KEY=VALUE with a key of letters, digits and _")]
pub(crate) struct InvalidVariable(String);

impl FromStr for EnvironmentVariable {
    type Err = InvalidVariable;
    fn from_str(text: &str) -> Result<Self, InvalidVariable> {
        // The value may be a secret: the message shows what stands before it.
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| InvalidVariable(text.chars().take(80).collect()))?;
        let valid = !key.is_empty()
            && !key.starts_with(|c: char| c.is_ascii_digit())
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !valid {
            return Err(InvalidVariable(key.chars().take(80).collect()));
        }
        Ok(Self {
            key: key.into(),
            value: value.into(),
        })
    }
}

/// The variables of a file, one `KEY=VALUE` a line; empty lines and those that begin with `#` are
/// left out. What stands behind `=` is the value as it is: no quotes, no expansion.
pub(super) fn variables(file: &str) -> Result<Vec<EnvironmentVariable>, InvalidLine> {
    let lines = file.lines().enumerate();
    lines
        .map(|(at, line)| (at + 1, line.trim_start()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            // A line without `=` may be a secret that was torn off: it is not shown.
            line.parse().map_err(|_| InvalidLine {
                number,
                key: line
                    .split_once('=')
                    .map(|(key, _)| key.chars().take(80).collect()),
            })
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidLine {
    number: usize,
    key: Option<String>,
}

impl std::error::Error for InvalidLine {}

impl std::fmt::Display for InvalidLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = self.number;
        match &self.key {
            Some(key) => write!(
                f,
                "line {number}: {key:?} is no name of a variable: expected letters, digits and _, no \
                 digit first"
            ),
            None => write!(
                f,
                "line {number} is not KEY=VALUE: expected one variable a line"
            ),
        }
    }
}

/// `from_file` are the variables of `--env-file`, which `--env` overrides.
pub(super) fn config(
    args: &DeployArgs,
    from_file: &[EnvironmentVariable],
    version: u32,
) -> ConfigInput {
    let variables: BTreeMap<String, String> = from_file
        .iter()
        .chain(&args.environment)
        .map(|variable| (variable.key.clone(), variable.value.clone()))
        .collect();
    let entity = ServedEntityInput {
        name: args.entity.as_ref().map(ToString::to_string),
        entity_name: Some(args.model.name().to_string()),
        entity_version: Some(version.to_string()),
        workload_size: args.workload_size.clone(),
        scale_to_zero_enabled: Some(args.scale_to_zero),
        environment_vars: (!variables.is_empty()).then_some(variables),
        stokehold: Some(StokeholdEntity {
            runtime: args.runtime.as_ref().map(ToString::to_string),
            target_concurrency: args.target_concurrency,
            latency_objective_ms: args
                .latency_objective
                .map(|objective| u32::try_from(objective.as_millis()).unwrap_or(u32::MAX)),
            min_replicas: args.min_replicas,
            max_replicas: args.max_replicas,
            memory_bytes: args.memory.map(|bytes| bytes.get()),
            cpu_millis: args.cpu.map(|cpu| cpu.0),
        }),
        ..ServedEntityInput::default()
    };
    ConfigInput {
        served_entities: Some(vec![entity]),
        ..ConfigInput::default()
    }
}

pub(super) fn version_of(model: &ModelRef, versions: &[ModelVersionInfo]) -> Result<u32, Stop> {
    let found = versions.iter().find(|info| match model {
        ModelRef::Version { version, .. } => info.version == *version,
        ModelRef::Alias { alias, .. } => info.aliases.contains(alias),
    });
    if let Some(info) = found {
        return Ok(info.version);
    }
    let known: Vec<String> = versions
        .iter()
        .map(|info| {
            let aliases: String = info.aliases.iter().map(|a| format!(" @{a}")).collect();
            format!("{}{aliases}", info.version)
        })
        .collect();
    Err(Stop::NotFound(format!(
        "model {model} does not exist; {} has versions {}",
        model.name(),
        known.join(", ")
    )))
}

/// The version of the configuration that an answer to create or update stands for.
pub(super) fn submitted_version(endpoint: &Detailed) -> u32 {
    endpoint
        .pending_config
        .as_ref()
        .or(endpoint.config.as_ref())
        .map_or(0, |config| config.config_version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;
    use shared::digest::Digest;
    use shared::manifest::{Description, ManifestId};

    fn args(line: &[&str]) -> DeployArgs {
        let line = ["stokehold", "deploy", "iris", "--model", "iris@prod"]
            .iter()
            .chain(line);
        match Cli::try_parse_from(line).expect("parsed").command {
            Command::Deploy(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_arrives_in_the_request() {
        let args = args(&[
            "--runtime",
            "probe",
            "--min-replicas",
            "2",
            "--max-replicas",
            "5",
            "--target-concurrency",
            "8",
            "--latency-objective",
            "250ms",
            "--memory",
            "1.5GiB",
            "--cpu",
            "0.5",
            "--scale-to-zero",
            "--env",
            "A=b=c",
            "--entity",
            "blue",
        ]);
        let json = serde_json::to_string_pretty(&config(&args, &[], 3)).expect("json");
        insta::assert_snapshot!(json);
    }

    #[test]
    fn cores_are_whole_parts_or_thousandths() {
        let parsed: Vec<u32> = ["2", "0.5", "500m", "1.25"]
            .iter()
            .map(|text| text.parse::<CpuMillis>().expect("cores").0)
            .collect();
        assert_eq!(parsed, [2000, 500, 500, 1250]);
        for bad in ["", "0", "-1", "x", "m", "nan", "1e20"] {
            assert!(bad.parse::<CpuMillis>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_wrong_variable_is_named_without_its_value() {
        let error = "1A=secret".parse::<EnvironmentVariable>().expect_err("key");
        assert!(!error.to_string().contains("secret"));
        assert!("A".parse::<EnvironmentVariable>().is_err());
        assert!("A=".parse::<EnvironmentVariable>().is_ok());
    }

    #[test]
    fn a_file_of_variables_is_read_line_by_line_and_overridden_by_flags() {
        let text = "# made by hand\n\nA=from file\n  B=\"kept as it is\" # too\nC==\n";
        let file = variables(text).expect("valid");
        let config = config(&args(&["--env", "A=flag"]), &file, 1);
        let entities = config.served_entities.expect("one");
        let told = entities[0].environment_vars.clone().expect("some");
        let told: Vec<(&str, &str)> = told.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            told,
            [("A", "flag"), ("B", "\"kept as it is\" # too"), ("C", "=")]
        );
        let told = |text: &str| variables(text).expect_err("refused").to_string();
        assert_eq!(
            told("A=1\nMY-KEY=secret"),
            "line 2: \"MY-KEY\" is no name of a variable: expected letters, digits and _, no digit first"
        );
        assert_eq!(
            told("secret"),
            "line 1 is not KEY=VALUE: expected one variable a line"
        );
    }

    fn version(version: u32, aliases: &[&str]) -> ModelVersionInfo {
        ModelVersionInfo {
            name: "iris".parse().expect("name"),
            version,
            manifest: ManifestId(Digest::of(b"x")),
            size_bytes: 1,
            description: Description::default(),
            created_unix_ms: 0,
            aliases: aliases.iter().map(|a| a.parse().expect("alias")).collect(),
        }
    }

    #[test]
    fn an_alias_means_one_version_and_a_missing_one_names_the_rest() {
        let versions = [version(1, &[]), version(2, &["prod"])];
        let model = |text: &str| text.parse::<ModelRef>().expect("model");
        assert_eq!(version_of(&model("iris@prod"), &versions).ok(), Some(2));
        assert_eq!(version_of(&model("iris/1"), &versions).ok(), Some(1));
        let error = version_of(&model("iris/3"), &versions).expect_err("missing");
        assert_eq!(
            error.to_string(),
            "model iris/3 does not exist; iris has versions 1, 2 @prod"
        );
    }
}
