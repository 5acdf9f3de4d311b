//! Reads what a model's files say about themselves. Nothing is executed or unpickled.
//!
//! What always holds: a file that claims a format and breaks it is an error with the place and the
//! way to mend it; a folder that claims nothing has an empty description and is a model all the same
//! (the `custom` and `probe` runtimes need none).
//!
//! | file | what it gives |
//! | --- | --- |
//! | `MLmodel` | flavors, task, Python version, signature |
//! | `requirements.txt` | requirements |
//! | `config.json`, `model/config.json` | architectures (Hugging Face) |
//! | `NAME/config.pbtxt`, `NAME/1/...` | a Triton repository |
//! | `oci-layout`, `index.json` | an image |

mod layout;
mod mlmodel;
mod requirements;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use shared::manifest::{Description, Kind, Signature};

use crate::scan::ScannedFile;

/// A description file above this is broken or hostile; a signature of 10,000 columns takes 1 MiB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why a folder has no description.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    #[error("read {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path:?} has {size} bytes, over the limit of {MAX_FILE_BYTES} for a file that describes a model"
    )]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{path:?} is not text in UTF-8")]
    NotText { path: PathBuf },
    #[error("{} is not a valid MLmodel file", path.display())]
    MlModel {
        path: PathBuf,
        #[source]
        source: serde_norway::Error,
    },
    /// What an MLmodel file says and its folder does not keep.
    #[error("{}: {}{problem}", path.display(), at_line(*line))]
    Content {
        path: PathBuf,
        line: Option<usize>,
        problem: String,
    },
    #[error("{path:?} is not valid JSON")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("folder {dir:?} holds {evidence:?}, which MLflow writes, but no MLmodel file")]
    NoMlModel { dir: PathBuf, evidence: String },
    #[error("folder {dir:?} is not a model, but its folder {inner:?} is")]
    OneTooHigh { dir: PathBuf, inner: String },
    #[error("{path:?}: {problem}")]
    Triton {
        path: PathBuf,
        problem: &'static str,
    },
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!("line {line}: "))
}

impl DescribeError {
    /// How to mend it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Read { source, .. } => return crate::scan::read_hint(source).map(str::to_owned),
            Self::TooLarge { .. } => "put what is large into a file of its own beside it",
            Self::NotText { .. } => "save the model again with its framework",
            Self::MlModel { .. } => {
                "mend the line, or save the model again with mlflow.FLAVOR.save_model"
            }
            Self::Content { .. } => {
                "save the model again with mlflow.FLAVOR.save_model and push that folder, whole"
            }
            Self::Json { .. } => "mend the line, or save the model again with its framework",
            Self::NoMlModel { .. } => "push the folder that MLflow's save_model wrote, whole",
            Self::OneTooHigh { dir, inner } => {
                return Some(format!("push {}", dir.join(inner).display()));
            }
            Self::Triton { .. } => {
                "a Triton repository holds NAME/config.pbtxt and NAME/1/...: push the folder that holds NAME"
            }
        };
        Some(text.to_owned())
    }
}

/// What keeps a folder that may be pushed from being deployed without more ado, for whoever pushes
/// it; `None` where a runtime can be chosen by what its files say.
pub fn gap(description: &Description) -> Option<String> {
    if description.kind == Kind::Image || description.flavors.contains_key("python_function") {
        return None;
    }
    if !description.flavors.is_empty() {
        let flavors: Vec<&str> = description.flavors.keys().map(String::as_str).collect();
        return Some(format!(
            "its MLmodel names {} and no python_function flavor, which the mlflow runtime needs",
            flavors.join(", ")
        ));
    }
    if description.triton_repository || !description.architectures.is_empty() {
        return None;
    }
    Some(
        "it holds no MLmodel file and no other layout that Stokehold knows (Hugging Face's \
         config.json, Triton's NAME/config.pbtxt)"
            .to_owned(),
    )
}

/// Describes the model whose `files` [`crate::scan::scan`] found in `dir`.
pub fn describe(dir: &Path, files: &[ScannedFile]) -> Result<Description, DescribeError> {
    let layout = layout::Layout::of(files);
    if layout.is_image() {
        return Ok(Description {
            kind: Kind::Image,
            ..Description::default()
        });
    }
    layout.check(dir)?;
    let mut description = Description {
        triton_repository: layout.is_triton_repository(),
        weight_bytes: layout.weight_bytes(),
        ..Description::default()
    };
    if layout.has("MLmodel") {
        read_mlmodel(dir, &layout, &mut description)?;
    }
    if layout.has("requirements.txt") {
        let text = read_text(dir.join("requirements.txt"))?;
        description.requirements = requirements::requirements(&text);
    }
    // MLflow's transformers flavor keeps what Hugging Face wrote in `model/`.
    let config = ["config.json", "model/config.json"]
        .into_iter()
        .find(|path| layout.has(path));
    if let Some(config) = config {
        description.architectures = read_architectures(dir.join(config))?;
    }
    Ok(description)
}

fn read_mlmodel(
    dir: &Path,
    layout: &layout::Layout<'_>,
    description: &mut Description,
) -> Result<(), DescribeError> {
    let path = dir.join("MLmodel");
    let text = read_text(path.clone())?;
    let model = mlmodel::parse(&text).map_err(|source| DescribeError::MlModel {
        path: path.clone(),
        source,
    })?;
    if model.flavors.is_empty() {
        return Err(DescribeError::Content {
            path,
            line: None,
            problem: "names no flavor under `flavors`".into(),
        });
    }
    if let Some(lack) = model.lack(|file| layout.holds(file)) {
        return Err(DescribeError::Content {
            path,
            line: mlmodel::line_of(&text, &lack),
            problem: lack.problem,
        });
    }
    if let Some(signature) = &model.signature {
        check_signature(&path, signature)?;
    }
    description.flavors = model.flavor_versions();
    description.task = model.task();
    description.python_version = model.python_version();
    description.signature = model.signature;
    if description.python_version.is_none() && layout.has("python_env.yaml") {
        let path = dir.join("python_env.yaml");
        let text = read_text(path.clone())?;
        description.python_version = mlmodel::parse_python_env(&text)
            .map_err(|source| DescribeError::MlModel { path, source })?;
    }
    Ok(())
}

/// MLflow keeps three JSON texts inside its YAML; gateways and people read them later.
fn check_signature(path: &Path, signature: &Signature) -> Result<(), DescribeError> {
    let parts = [
        ("inputs", &signature.inputs),
        ("outputs", &signature.outputs),
        ("params", &signature.params),
    ];
    for (part, text) in parts {
        let Some(text) = text else { continue };
        if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
            return Err(DescribeError::Content {
                path: path.to_owned(),
                line: None,
                problem: format!("signature.{part} is not JSON ({error})"),
            });
        }
    }
    Ok(())
}

/// `architectures` of a Hugging Face config. Other frameworks use the name `config.json` for shapes
/// of their own, so only broken JSON and a broken `architectures` are errors.
fn read_architectures(path: PathBuf) -> Result<Vec<String>, DescribeError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        architectures: Option<Vec<String>>,
    }
    let text = read_text(path.clone())?;
    let json = |source| DescribeError::Json {
        path: path.clone(),
        source,
    };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(json)?;
    if !value.is_object() {
        return Ok(Vec::new());
    }
    let config: Config = serde_json::from_value(value).map_err(json)?;
    Ok(config.architectures.unwrap_or_default())
}

fn read_text(path: PathBuf) -> Result<String, DescribeError> {
    let read = |source| DescribeError::Read {
        path: path.clone(),
        source,
    };
    let file = File::open(&path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    if size > MAX_FILE_BYTES {
        return Err(DescribeError::TooLarge { path, size });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    String::from_utf8(bytes).map_err(|_| DescribeError::NotText { path })
}

#[cfg(test)]
mod tests;
