//! Images of registries, and where images are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{ImageRef, NodeName};

/// `POST /api/stokehold/v1/images/pull`: asks the registry now what the reference means; answered by
/// the image's [`super::ImageInfo`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    pub reference: ImageRef,
}

/// How far the nodes are that should hold an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OnNodes {
    /// Nodes whose plan has it.
    pub planned: u32,
    /// Nodes on which it is unpacked.
    pub ready: u32,
    pub failed: Vec<FailedPull>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailedPull {
    pub node: NodeName,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissingImage {
    pub reference: ImageRef,
    /// What is wrong and how to mend it.
    pub reason: String,
}
