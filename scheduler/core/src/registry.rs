//! What is recorded rather than decided: models and their aliases, images, nodes, join tokens and
//! bearer tokens.
//!
//! What always holds: memory and store agree once the returned operations are committed. Each
//! mutator checks first, then changes memory, then returns what to write; a refusal changes
//! nothing. A version number of a model is given out once, also when the version is deleted.
//!
//! Not here: endpoints, replicas and everything else that moves by itself.
//!
//! | key | record |
//! | --- | --- |
//! | `model/NAME/VERSION` | [`ModelVersion`] |
//! | `modelHead/NAME` | the last version number given out |
//! | `alias/NAME/ALIAS` | the version that the alias stands for |
//! | `image/REFERENCE` | [`ImageRecord`] |
//! | `node/NAME` | [`NodeRecord`] |
//! | `joinToken/ID` | [`JoinTokenRecord`] |
//! | `token/ID` | [`TokenRecord`] |

mod certificates;
mod images;
mod join_tokens;
mod models;
mod nodes;
mod record;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};

use shared::ids::{AliasName, ImageRef, ModelName, NodeName, TokenId};
use shared::manifest::ManifestId;

use crate::store_op::{Entries, RestoreError};

pub use certificates::{
    CertificateRecord, RenewalAttempt, RenewalRefusal, RotationStage, SessionRefusal, Shown,
};
pub use images::ImageRecord;
pub use join_tokens::{JoinRefusal, JoinTokenRecord, NewJoinToken, Redemption};
pub use models::{ModelContents, ModelVersion};
pub use nodes::NodeRecord;
pub use tokens::TokenRecord;

/// A fresh id and secret. They come from the caller, as chance is an argument.
#[derive(Clone)]
pub struct Secret {
    pub id: TokenId,
    pub bytes: [u8; 32],
}

#[derive(Clone, Debug, Default)]
pub struct Registry {
    versions: BTreeMap<ModelName, BTreeMap<u32, ModelVersion>>,
    heads: BTreeMap<ModelName, u32>,
    aliases: BTreeMap<ModelName, BTreeMap<AliasName, u32>>,
    images: BTreeMap<ImageRef, ImageRecord>,
    nodes: BTreeMap<NodeName, NodeRecord>,
    join_tokens: BTreeMap<TokenId, JoinTokenRecord>,
    tokens: BTreeMap<TokenId, TokenRecord>,
}

impl Registry {
    pub fn restore(entries: &Entries) -> Result<Self, RestoreError> {
        let mut registry = Self::default();
        registry.restore_models(entries)?;
        registry.restore_images(entries)?;
        registry.restore_nodes(entries)?;
        registry.restore_join_tokens(entries)?;
        registry.restore_tokens(entries)?;
        Ok(registry)
    }

    /// Every manifest that a model version or an image needs; whatever else is stored is waste.
    pub fn live_manifests(&self) -> Vec<ManifestId> {
        let models = self.models().map(|version| version.manifest);
        let images = self
            .images()
            .filter_map(|record| record.image.origin.layout());
        let live: BTreeSet<ManifestId> = models.chain(images).collect();
        live.into_iter().collect()
    }
}
