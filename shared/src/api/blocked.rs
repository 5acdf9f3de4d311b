//! What keeps a served entity's next replica from being placed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::EntityName;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Blocked {
    pub entity: EntityName,
    /// What is missing where, and what to change.
    pub reason: String,
    /// No node could hold it even if all others left: it waits until somebody changes something (a
    /// node joins, an image is imported, the endpoint asks for less).
    pub for_good: bool,
}
