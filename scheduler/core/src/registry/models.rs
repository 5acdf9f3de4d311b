//! Models: versions of names, and aliases that move between versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared::api::ModelVersionInfo;
use shared::ids::{AliasName, ModelName, ModelRef};
use shared::manifest::{Description, Kind, Manifest, ManifestId};

use super::Registry;
use super::record::{self, Pair};
use crate::error::ApiError;
use crate::store_op::{Entries, Op, RestoreError};

/// One version of a registered model. What it means never changes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelVersion {
    pub name: ModelName,
    pub version: u32,
    pub manifest: ManifestId,
    pub size_bytes: u64,
    /// Of the manifest's description what fits a record: signature, then requirements, are left out
    /// when it is too long. The manifest itself holds all of it.
    pub description: Description,
    pub created_unix_ms: u64,
}

/// What a new version is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelContents {
    pub manifest: ManifestId,
    pub size_bytes: u64,
    pub description: Description,
}

impl ModelContents {
    pub fn of(id: ManifestId, manifest: &Manifest) -> Self {
        Self {
            manifest: id,
            size_bytes: manifest.size_bytes(),
            description: manifest.description.clone(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct VersionRecord {
    manifest: ManifestId,
    size_bytes: u64,
    description: Description,
    created_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct HeadRecord {
    last_version: u32,
}

#[derive(Serialize, Deserialize)]
struct AliasRecord {
    version: u32,
}

impl Registry {
    pub(super) fn restore_models(&mut self, entries: &Entries) -> Result<(), RestoreError> {
        type VersionKey = Pair<ModelName, u32>;
        type AliasKey = Pair<ModelName, AliasName>;
        for (Pair(name, version), stored) in
            record::restore::<VersionKey, VersionRecord>(entries, "model/")?
        {
            let restored = ModelVersion {
                name: name.clone(),
                version,
                manifest: stored.manifest,
                size_bytes: stored.size_bytes,
                description: stored.description,
                created_unix_ms: stored.created_unix_ms,
            };
            let versions = self.versions.entry(name).or_default();
            versions.insert(version, restored);
        }
        for (name, head) in record::restore::<ModelName, HeadRecord>(entries, "modelHead/")? {
            self.heads.insert(name, head.last_version);
        }
        for (Pair(name, alias), stored) in
            record::restore::<AliasKey, AliasRecord>(entries, "alias/")?
        {
            if self.model(&name, stored.version).is_none() {
                return Err(RestoreError::Invalid {
                    key: alias_key(&name, &alias),
                    problem: format!("stands for version {}, which is missing", stored.version),
                });
            }
            let aliases = self.aliases.entry(name).or_default();
            aliases.insert(alias, stored.version);
        }
        Ok(())
    }

    /// Every version of every model, by name and version.
    pub fn models(&self) -> impl Iterator<Item = &ModelVersion> {
        self.versions.values().flat_map(BTreeMap::values)
    }

    /// The versions of one model, oldest first; none for an unknown name.
    pub fn versions_of(&self, name: &ModelName) -> impl Iterator<Item = &ModelVersion> {
        self.versions
            .get(name)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    pub fn model(&self, name: &ModelName, version: u32) -> Option<&ModelVersion> {
        self.versions.get(name)?.get(&version)
    }

    pub fn resolve(&self, reference: &ModelRef) -> Result<&ModelVersion, ApiError> {
        match reference {
            ModelRef::Version { name, version } => self.existing(name, *version),
            ModelRef::Alias { name, alias } => {
                let version = self
                    .aliases
                    .get(name)
                    .and_then(|aliases| aliases.get(alias));
                let version = version.ok_or_else(|| {
                    ApiError::not_found(format!(
                        "model {name} has no alias {alias}: set it with `stokehold model alias`"
                    ))
                })?;
                self.existing(name, *version)
            }
        }
    }

    /// The aliases that stand for a version now.
    pub fn aliases_of(&self, name: &ModelName, version: u32) -> Vec<AliasName> {
        let aliases = self.aliases.get(name).into_iter().flatten();
        aliases
            .filter(|(_, stands_for)| **stands_for == version)
            .map(|(alias, _)| alias.clone())
            .collect()
    }

    /// A version in the words of the REST API.
    pub fn model_info(&self, version: &ModelVersion) -> ModelVersionInfo {
        ModelVersionInfo {
            name: version.name.clone(),
            version: version.version,
            manifest: version.manifest,
            size_bytes: version.size_bytes,
            description: version.description.clone(),
            created_unix_ms: version.created_unix_ms,
            aliases: self.aliases_of(&version.name, version.version),
        }
    }

    /// Gives the contents the next version number. The same contents as the newest version's are
    /// that version: a push whose answer was lost may be sent again.
    pub fn register_model_version(
        &mut self,
        name: &ModelName,
        contents: ModelContents,
        now_unix_ms: u64,
    ) -> Result<(u32, Vec<Op>), ApiError> {
        if contents.description.kind != Kind::Model {
            return Err(ApiError::invalid(format!(
                "manifest {} is of an image: register it with `stokehold image import`",
                contents.manifest
            )));
        }
        let newest = self.versions_of(name).last();
        if let Some(newest) = newest.filter(|newest| newest.manifest == contents.manifest) {
            return Ok((newest.version, Vec::new()));
        }
        let last = self.heads.get(name).copied().unwrap_or(0);
        let version = last.checked_add(1).ok_or_else(|| {
            ApiError::invalid(format!("model {name} has used up its version numbers"))
        })?;
        let (description, put) = fitting_record(name, version, &contents, now_unix_ms)?;
        let head = HeadRecord {
            last_version: version,
        };
        let ops = vec![put, record::put(head_key(name), &head)?];
        self.heads.insert(name.clone(), version);
        let versions = self.versions.entry(name.clone()).or_default();
        versions.insert(
            version,
            ModelVersion {
                name: name.clone(),
                version,
                manifest: contents.manifest,
                size_bytes: contents.size_bytes,
                description,
                created_unix_ms: now_unix_ms,
            },
        );
        Ok((version, ops))
    }

    /// Makes the alias stand for this version from now on. Endpoints keep the version that the
    /// alias stood for when they were made.
    pub fn set_alias(
        &mut self,
        name: &ModelName,
        alias: &AliasName,
        version: u32,
    ) -> Result<Vec<Op>, ApiError> {
        self.existing(name, version)?;
        let ops = vec![record::put(
            alias_key(name, alias),
            &AliasRecord { version },
        )?];
        let aliases = self.aliases.entry(name.clone()).or_default();
        aliases.insert(alias.clone(), version);
        Ok(ops)
    }

    /// Forgets a version, and the aliases that stand for it. `in_use` says what still needs it.
    pub fn delete_model_version(
        &mut self,
        name: &ModelName,
        version: u32,
        in_use: &dyn Fn(&ModelName, u32) -> Option<String>,
    ) -> Result<Vec<Op>, ApiError> {
        self.existing(name, version)?;
        if let Some(user) = in_use(name, version) {
            return Err(ApiError::conflict(format!(
                "model {name}/{version} is used by {user}: delete or update that first"
            )));
        }
        // The aliases first: where they are too many for one commit, none is left without a version.
        let mut ops = Vec::new();
        for alias in self.aliases_of(name, version) {
            ops.push(Op::Delete {
                key: alias_key(name, &alias),
            });
            if let Some(aliases) = self.aliases.get_mut(name) {
                aliases.remove(&alias);
            }
        }
        if let Some(versions) = self.versions.get_mut(name) {
            versions.remove(&version);
        }
        self.versions.retain(|_, versions| !versions.is_empty());
        ops.push(Op::Delete {
            key: version_key(name, version),
        });
        Ok(ops)
    }

    fn existing(&self, name: &ModelName, version: u32) -> Result<&ModelVersion, ApiError> {
        self.model(name, version).ok_or_else(|| {
            let known: Vec<String> = self
                .versions_of(name)
                .map(|known| known.version.to_string())
                .collect();
            ApiError::not_found(if known.is_empty() {
                format!("model {name} does not exist: push it with `stokehold model push`")
            } else {
                let known = known.join(", ");
                format!("model {name} has no version {version}, it has {known}")
            })
        })
    }
}

/// The record of a version, its description cut to what a record may hold.
fn fitting_record(
    name: &ModelName,
    version: u32,
    contents: &ModelContents,
    created_unix_ms: u64,
) -> Result<(Description, Op), ApiError> {
    let key = version_key(name, version);
    let mut stored = VersionRecord {
        manifest: contents.manifest,
        size_bytes: contents.size_bytes,
        description: contents.description.clone(),
        created_unix_ms,
    };
    // Nothing that chooses a runtime is ever left out: flavors, task and architectures stay.
    let cuts: [fn(&mut Description); 3] = [
        |_| {},
        |description| description.signature = None,
        |description| description.requirements.clear(),
    ];
    for cut in cuts {
        cut(&mut stored.description);
        if let Ok(put) = record::put(key.clone(), &stored) {
            return Ok((stored.description, put));
        }
    }
    let put = record::put(key, &stored)?;
    Ok((stored.description, put))
}

fn version_key(name: &ModelName, version: u32) -> String {
    format!("model/{name}/{version}")
}

fn head_key(name: &ModelName) -> String {
    format!("modelHead/{name}")
}

fn alias_key(name: &ModelName, alias: &AliasName) -> String {
    format!("alias/{name}/{alias}")
}
