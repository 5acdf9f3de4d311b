//! MLflow's `MLmodel` and `python_env.yaml`. Pure.
//!
//! Versions are read as the text that stands in the file: as YAML numbers `3.10` would become `3.1`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
    /// Files and folders of the model that it names, each with its key.
    names: Vec<(String, String)>,
}

/// Keys under which flavors name what they load, relative to the folder.
const DATA_KEYS: [&str; 7] = [
    "data",
    "model_binary",
    "model_data",
    "model_path",
    "pickled_model",
    "python_model",
    "saved_model_dir",
];

/// What a flavor says and its folder does not keep.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lack {
    flavor: String,
    /// The key that says it; `None` where one is missing.
    key: Option<String>,
    pub(super) problem: String,
}

/// The line of an MLmodel file in which a lack stands, from 1. By its words alone: the file was read
/// as YAML before, and a line that cannot be told is left out.
pub(super) fn line_of(text: &str, lack: &Lack) -> Option<usize> {
    let names = |line: &str, key: &str| {
        let rest = line.trim_start().strip_prefix(key);
        rest.is_some_and(|rest| rest.starts_with(':'))
    };
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = text.lines().collect();
    let flavors = lines.iter().position(|line| line.starts_with("flavors:"))?;
    let head = (flavors + 1..lines.len()).find(|&at| names(lines[at], &lack.flavor))?;
    let Some(key) = &lack.key else {
        return Some(head + 1);
    };
    let section = (head + 1..lines.len())
        .take_while(|&at| lines[at].trim().is_empty() || indent(lines[at]) > indent(lines[head]));
    let at = section.into_iter().find(|&at| names(lines[at], key))?;
    Some(at + 1)
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
    /// The first thing that a flavor needs and does not have. `holds` says what lies in the folder.
    pub(super) fn lack(&self, holds: impl Fn(&str) -> bool) -> Option<Lack> {
        for (name, flavor) in &self.flavors {
            let missing = flavor.names.iter().find(|(_, file)| !holds(file));
            if let Some((key, file)) = missing {
                let shown: String = file.chars().take(200).collect();
                return Some(Lack {
                    flavor: name.clone(),
                    key: Some(key.clone()),
                    problem: format!(
                        "flavor {name:?} names {key} {shown:?}, which is not in the folder"
                    ),
                });
            }
            if name == "python_function" && flavor.text("loader_module").is_none() {
                return Some(Lack {
                    flavor: name.clone(),
                    key: None,
                    problem: format!(
                        "flavor {name:?} names no loader_module, so nothing can load it"
                    ),
                });
            }
        }
        None
    }

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
        matches!(key, "task" | "inference_task" | "loader_module") || key.ends_with("_version")
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
                    if DATA_KEYS.contains(&key.as_str()) {
                        let file = map.next_value::<Loose>()?.0.filter(|file| !file.is_empty());
                        flavor.names.extend(file.map(|file| (key, file)));
                    } else if !Flavor::wants(&key) {
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

/// A text, or anything else, which is left alone.
struct Loose(Option<String>);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = Loose;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_str<E>(self, text: &str) -> Result<Loose, E> {
                Ok(Loose(Some(text.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Loose, E> {
                Ok(Loose(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose(None))
            }
        }
        deserializer.deserialize_any(Anything)
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
