//! What a folder's paths alone say about it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::DescribeError;
use crate::scan::ScannedFile;

/// Files that only MLflow's `save_model` writes.
const MLFLOW_ONLY: [&str; 3] = [
    "python_env.yaml",
    "python_model.pkl",
    "registered_model_meta",
];

const WEIGHTS: [&str; 3] = ["safetensors", "onnx", "bin"];

pub(super) struct Layout<'a> {
    /// Sizes by path.
    files: BTreeMap<&'a str, u64>,
}

impl<'a> Layout<'a> {
    pub(super) fn of(files: &'a [ScannedFile]) -> Self {
        let files = files.iter().map(|f| (f.path.as_str(), f.size_bytes));
        Self {
            files: files.collect(),
        }
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Whether it is a file, or a folder with files in it.
    pub(super) fn holds(&self, path: &str) -> bool {
        let path = path.trim_start_matches("./").trim_end_matches('/');
        let below = format!("{path}/");
        self.has(path) || self.files.keys().any(|file| file.starts_with(&below))
    }

    pub(super) fn is_image(&self) -> bool {
        self.has("oci-layout")
            && self.has("index.json")
            && self.files.keys().any(|p| p.starts_with("blobs/sha256/"))
    }

    /// Each model of a repository is `NAME/config.pbtxt` beside folders named by version numbers.
    pub(super) fn is_triton_repository(&self) -> bool {
        self.describes_nothing_else()
            && self
                .triton_names()
                .any(|name| self.has_version_folder(name))
    }

    pub(super) fn weight_bytes(&self) -> u64 {
        self.files
            .iter()
            .filter(|(path, _)| {
                let extension = Path::new(path).extension().and_then(|e| e.to_str());
                extension.is_some_and(|e| WEIGHTS.contains(&e))
            })
            .fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// The mistakes that paths show: a model saved in part, or the folder around a model.
    pub(super) fn check(&self, dir: &Path) -> Result<(), DescribeError> {
        if !self.describes_nothing_else() {
            return Ok(());
        }
        if let Some(evidence) = MLFLOW_ONLY.into_iter().find(|path| self.has(path)) {
            return Err(DescribeError::NoMlModel {
                dir: dir.to_owned(),
                evidence: evidence.to_owned(),
            });
        }
        if self.has("config.pbtxt") {
            return Err(DescribeError::Triton {
                path: dir.join("config.pbtxt"),
                problem: "is one model of a Triton repository, and the folder above is the repository",
            });
        }
        if let Some(name) = self.triton_names().find(|n| !self.has_version_folder(n)) {
            return Err(DescribeError::Triton {
                path: dir.join(name).join("config.pbtxt"),
                problem: "no folder named by a version number, such as `1`, lies beside it",
            });
        }
        let tops: BTreeSet<&str> = self.files.keys().map(|path| top(path)).collect();
        if let [only] = Vec::from_iter(tops).as_slice()
            && self.has(&format!("{only}/MLmodel"))
        {
            return Err(DescribeError::OneTooHigh {
                dir: dir.to_owned(),
                inner: (*only).to_owned(),
            });
        }
        Ok(())
    }

    fn describes_nothing_else(&self) -> bool {
        !self.has("MLmodel") && !self.has("config.json")
    }

    fn triton_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.files.keys().filter_map(|path| {
            let name = path.strip_suffix("/config.pbtxt")?;
            (!name.contains('/')).then_some(name)
        })
    }

    fn has_version_folder(&self, name: &str) -> bool {
        self.files.keys().any(|path| {
            let mut parts = path.split('/');
            let version = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            parts.next() == Some(name)
                && parts.next().is_some_and(version)
                && parts.next().is_some()
        })
    }
}

fn top(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}
