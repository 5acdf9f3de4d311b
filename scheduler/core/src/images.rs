//! Images as the fleet needs them: which are missing, why, and on how many nodes the others are.

use std::collections::BTreeSet;

use shared::api::images::{FailedPull, MissingImage, OnNodes};
use shared::api::serving::ServedEntityInput;
use shared::api::{ImageInfo, ImageList};
use shared::ids::ImageRef;

use crate::core::Core;
use crate::registry::ImageRecord;
use crate::validate::{config, entity};

impl Core {
    pub fn image_list(&self) -> ImageList {
        let records = self.registry.images();
        let named: BTreeSet<&ImageRef> =
            self.settings.templates.values().map(|t| &t.image).collect();
        let missing = named
            .into_iter()
            .filter(|image| self.registry.image(image).is_none());
        ImageList {
            images: records.map(|record| self.image_info(record)).collect(),
            missing: missing
                .map(|image| MissingImage {
                    reference: image.clone(),
                    reason: self.why_missing(image),
                })
                .collect(),
        }
    }

    pub fn image_info(&self, record: &ImageRecord) -> ImageInfo {
        let reference = &record.image.reference;
        let mut nodes = OnNodes::default();
        for (name, plan) in &self.plans {
            if !plan.images.contains(&record.image) {
                continue;
            }
            nodes.planned += 1;
            let Some(node) = self.nodes.get(name) else {
                continue;
            };
            nodes.ready += u32::from(node.images.contains(reference));
            if let Some(reason) = node.image_troubles.get(reference) {
                nodes.failed.push(FailedPull {
                    node: name.clone(),
                    reason: reason.clone(),
                });
            }
        }
        ImageInfo {
            nodes,
            ..record.info()
        }
    }

    /// Images that runtimes name, that a registry should have, and that nobody has asked it for with
    /// success.
    pub fn unresolved_images(&self) -> BTreeSet<ImageRef> {
        let named = self
            .settings
            .templates
            .values()
            .map(|template| &template.image);
        let missing = named.filter(|image| self.is_unresolved(image));
        missing.cloned().collect()
    }

    /// Those among them that an endpoint of these entities would need at once. Entities that are not
    /// valid need none: whoever takes them in says what is wrong with them.
    pub fn images_needed<'a>(
        &self,
        entities: impl IntoIterator<Item = &'a ServedEntityInput>,
    ) -> BTreeSet<ImageRef> {
        let gpus = |_| u32::MAX;
        let fleet = config::Fleet {
            registry: &self.registry,
            settings: &self.settings,
            most_gpus: &gpus,
        };
        let runtimes = entities
            .into_iter()
            .filter_map(|input| entity::checked(&fleet, input, "").ok())
            .filter_map(|entity| self.settings.templates.get(&entity.runtime));
        runtimes
            .map(|template| template.image.clone())
            .filter(|image| self.is_unresolved(image))
            .collect()
    }

    fn is_unresolved(&self, image: &ImageRef) -> bool {
        image.registry().is_some() && self.registry.image(image).is_none()
    }

    /// Notes why a registry does not give an image; `None` once it does. Says whether that is news.
    pub fn note_image_problem(&mut self, image: &ImageRef, problem: Option<String>) -> bool {
        // What nobody runs is the business of whoever asked for it.
        if self
            .settings
            .templates
            .values()
            .all(|template| template.image != *image)
        {
            return false;
        }
        match problem {
            None => self.image_problems.remove(image).is_some(),
            Some(problem) => {
                let before = self.image_problems.insert(image.clone(), problem.clone());
                before != Some(problem)
            }
        }
    }

    /// Why an image is not there, and how to mend it.
    pub(crate) fn why_missing(&self, image: &ImageRef) -> String {
        match self.image_problems.get(image) {
            Some(problem) => problem.clone(),
            None if image.registry().is_some() => {
                format!("image {image} is being asked for at its registry")
            }
            None => format!("image {image} is not imported: stokehold image import FILE"),
        }
    }
}
