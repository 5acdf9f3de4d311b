//! MLflow's `MLmodel` and `python_env.yaml`. Pure.
//!
//! Versions are read as the text that stands in the file: as YAML numbers `3.10` would become `3.1`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use shared::manifest::Signature;

#[derive(Debug, Deserialize)]
pub(super) struct MlModel {
    pub(super) flavors: BTreeMap<String, Flavor>,
    #[serde(default, deserialize_with = "signature")]
    pub(super) signature: Option<Signature>,
    #[serde(default)]
    mlflow_version: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

/// The texts of a flavor's section that are known by name; the rest is left alone.
#[derive(Debug, Default)]
pub(super) struct Flavor {
    texts: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    task: Option<String>,
}

pub(super) fn parse(text: &str) -> Result<MlModel, serde_norway::Error> {
    serde_norway::from_str(text)
}

/// The interpreter version of a `python_env.yaml`.
pub(super) fn parse_python_env(text: &str) -> Result<Option<String>, serde_norway::Error> {
    #[derive(Deserialize)]
    struct PythonEnv {
        #[serde(default)]
        python: Option<String>,
    }
    let env: Option<PythonEnv> = serde_norway::from_str(text)?;
    Ok(env.and_then(|env| env.python))
}

impl MlModel {
    /// Flavors with the version of the library that wrote them, empty where it is not given.
    pub(super) fn flavor_versions(&self) -> BTreeMap<String, String> {
        let version = |name: &str, flavor: &Flavor| match name {
            "python_function" => self.mlflow_version.clone(),
            _ => flavor.text(&version_key(name)).map(str::to_owned),
        };
        self.flavors
            .iter()
            .map(|(name, flavor)| (name.clone(), version(name, flavor).unwrap_or_default()))
            .collect()
    }

    /// `llm/v1/chat` and the like: what the user declared, else what the transformers flavor says.
    pub(super) fn task(&self) -> Option<String> {
        let declared = self.metadata.as_ref().and_then(|m| m.task.clone());
        let flavor = self.flavors.get("transformers");
        declared
            .or_else(|| flavor?.text("inference_task").map(str::to_owned))
            .or_else(|| flavor?.text("task").map(str::to_owned))
    }

    pub(super) fn python_version(&self) -> Option<String> {
        let flavor = self.flavors.get("python_function")?;
        flavor.text("python_version").map(str::to_owned)
    }
}

/// Where a flavor's section keeps its library's version.
fn version_key(flavor: &str) -> String {
    match flavor {
        "xgboost" => "xgb_version".into(),
        "lightgbm" => "lgb_version".into(),
        "spark" => "pyspark_version".into(),
        other => format!("{other}_version"),
    }
}

impl Flavor {
    fn text(&self, key: &str) -> Option<&str> {
        self.texts.get(key).map(String::as_str)
    }

    fn wants(key: &str) -> bool {
        key == "task" || key == "inference_task" || key.ends_with("_version")
    }
}

impl<'de> Deserialize<'de> for Flavor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Section;
        impl<'de> Visitor<'de> for Section {
            type Value = Flavor;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a flavor's section")
            }
            fn visit_unit<E>(self) -> Result<Flavor, E> {
                Ok(Flavor::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Flavor, A::Error> {
                let mut flavor = Flavor::default();
                while let Some(key) = map.next_key::<String>()? {
                    if !Flavor::wants(&key) {
                        map.next_value::<IgnoredAny>()?;
                    } else if let Some(text) = map.next_value::<Option<String>>()? {
                        flavor.texts.insert(key, text);
                    }
                }
                Ok(flavor)
            }
        }
        deserializer.deserialize_any(Section)
    }
}

/// Ours refuses unknown keys because it travels; MLflow's may grow some.
fn signature<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Signature>, D::Error> {
    #[derive(Deserialize)]
    struct Texts {
        #[serde(default)]
        inputs: Option<String>,
        #[serde(default)]
        outputs: Option<String>,
        #[serde(default)]
        params: Option<String>,
    }
    let texts = Option::<Texts>::deserialize(deserializer)?;
    Ok(texts.map(|texts| Signature {
        inputs: texts.inputs,
        outputs: texts.outputs,
        params: texts.params,
    }))
}
