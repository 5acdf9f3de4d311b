//! Images: references, and what an image was found to hold when it was imported, or when its registry
//! was asked.

use serde::{Deserialize, Serialize};
use shared::api::ImageInfo;
use shared::api::images::OnNodes;
use shared::digest::OciDigest;
use shared::ids::ImageRef;
use shared::manifest::ManifestId;
use shared::plan::{ImageOrigin, OciBlob, OciLayer, PlannedImage};

use super::Registry;
use super::record;
use crate::error::ApiError;
use crate::store_op::{Entries, Op, RestoreError};

const PREFIX: &str = "image/";
/// What a store's key of 256 bytes leaves for the reference.
const MAX_REFERENCE_BYTES: usize = 256 - PREFIX.len();

#[derive(Clone, Debug, PartialEq)]
pub struct ImageRecord {
    pub image: PlannedImage,
    /// Bytes of its blobs.
    pub size_bytes: u64,
    pub created_unix_ms: u64,
}

impl ImageRecord {
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            reference: self.image.reference.clone(),
            digest: self.image.manifest.digest.to_string(),
            layout: self.image.origin.layout(),
            size_bytes: self.size_bytes,
            layers: u32::try_from(self.image.layers.len()).unwrap_or(u32::MAX),
            created_unix_ms: self.created_unix_ms,
            nodes: OnNodes::default(),
        }
    }
}

/// An image in few bytes: media types repeat, and an image of a hundred layers must fit a record.
#[derive(Serialize, Deserialize)]
struct StoredImage {
    /// `None`: its registry has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layout: Option<ManifestId>,
    media_types: Vec<String>,
    manifest: StoredBlob,
    config: StoredBlob,
    layers: Vec<StoredLayer>,
    environment: Vec<String>,
    created_unix_ms: u64,
}

/// Index into `media_types`, digest, size in bytes.
#[derive(Serialize, Deserialize)]
struct StoredBlob(usize, String, u64);

/// A blob's fields and the digest of the uncompressed layer.
#[derive(Serialize, Deserialize)]
struct StoredLayer(usize, String, u64, String);

impl Registry {
    pub(super) fn restore_images(&mut self, entries: &Entries) -> Result<(), RestoreError> {
        for (reference, stored) in record::restore::<ImageRef, StoredImage>(entries, PREFIX)? {
            let key = key(&reference);
            let restored = stored
                .into_record(reference.clone())
                .ok_or(RestoreError::Invalid {
                    key,
                    problem: "holds a digest or media type that is not valid".into(),
                })?;
            self.images.insert(reference, restored);
        }
        Ok(())
    }

    pub fn images(&self) -> impl Iterator<Item = &ImageRecord> {
        self.images.values()
    }

    pub fn image(&self, reference: &ImageRef) -> Option<&PlannedImage> {
        self.images.get(reference).map(|record| &record.image)
    }

    pub fn image_record(&self, reference: &ImageRef) -> Option<&ImageRecord> {
        self.images.get(reference)
    }

    /// Makes the reference mean this image from now on; replicas that run keep theirs.
    pub fn register_image(
        &mut self,
        image: PlannedImage,
        now_unix_ms: u64,
    ) -> Result<Vec<Op>, ApiError> {
        if image.reference.as_str().len() > MAX_REFERENCE_BYTES {
            return Err(ApiError::invalid(format!(
                "reference must be at most {MAX_REFERENCE_BYTES} bytes long"
            )));
        }
        let known = self.images.get(&image.reference);
        if known.is_some_and(|known| known.image == image) {
            return Ok(Vec::new());
        }
        let put = record::put(
            key(&image.reference),
            &StoredImage::new(&image, now_unix_ms),
        )?;
        let size_bytes = size_bytes(&image);
        self.images.insert(
            image.reference.clone(),
            ImageRecord {
                image,
                size_bytes,
                created_unix_ms: now_unix_ms,
            },
        );
        Ok(vec![put])
    }

    /// Forgets a reference. `in_use` says what still needs it.
    pub fn delete_image(
        &mut self,
        reference: &ImageRef,
        in_use: &dyn Fn(&ImageRef) -> Option<String>,
    ) -> Result<Vec<Op>, ApiError> {
        if !self.images.contains_key(reference) {
            return Err(ApiError::not_found(format!(
                "image {reference} does not exist"
            )));
        }
        if let Some(user) = in_use(reference) {
            return Err(ApiError::conflict(format!(
                "image {reference} is used by {user}: delete or update that first"
            )));
        }
        self.images.remove(reference);
        Ok(vec![Op::Delete {
            key: key(reference),
        }])
    }
}

impl StoredImage {
    fn new(image: &PlannedImage, created_unix_ms: u64) -> Self {
        let mut media_types: Vec<String> = Vec::new();
        let mut index = |media_type: &str| {
            let known = media_types.iter().position(|known| known == media_type);
            known.unwrap_or_else(|| {
                media_types.push(media_type.to_owned());
                media_types.len() - 1
            })
        };
        let mut blob = |blob: &OciBlob| {
            let hex = blob.digest.hex().to_owned();
            StoredBlob(index(&blob.media_type), hex, blob.size_bytes)
        };
        let (manifest, config) = (blob(&image.manifest), blob(&image.config));
        let layers = image
            .layers
            .iter()
            .map(|layer| {
                let StoredBlob(media_type, hex, size) = blob(&layer.blob);
                StoredLayer(media_type, hex, size, layer.diff_id.hex().to_owned())
            })
            .collect();
        Self {
            layout: image.origin.layout(),
            media_types,
            manifest,
            config,
            layers,
            environment: image.environment.clone(),
            created_unix_ms,
        }
    }

    fn into_record(self, reference: ImageRef) -> Option<ImageRecord> {
        let digest = |hex: &str| OciDigest::parse(&format!("sha256:{hex}")).ok();
        let blob = |media_type: usize, hex: &str, size_bytes: u64| {
            Some(OciBlob {
                media_type: self.media_types.get(media_type)?.clone(),
                digest: digest(hex)?,
                size_bytes,
            })
        };
        let layer = |layer: &StoredLayer| {
            Some(OciLayer {
                blob: blob(layer.0, &layer.1, layer.2)?,
                diff_id: digest(&layer.3)?,
            })
        };
        let image = PlannedImage {
            reference,
            origin: self
                .layout
                .map_or(ImageOrigin::Registry, ImageOrigin::Layout),
            manifest: blob(self.manifest.0, &self.manifest.1, self.manifest.2)?,
            config: blob(self.config.0, &self.config.1, self.config.2)?,
            layers: self.layers.iter().map(layer).collect::<Option<_>>()?,
            environment: self.environment.clone(),
        };
        Some(ImageRecord {
            size_bytes: size_bytes(&image),
            image,
            created_unix_ms: self.created_unix_ms,
        })
    }
}

fn size_bytes(image: &PlannedImage) -> u64 {
    let layers = image.layers.iter().map(|layer| &layer.blob);
    [&image.manifest, &image.config]
        .into_iter()
        .chain(layers)
        .fold(0, |sum, blob| sum.saturating_add(blob.size_bytes))
}

fn key(reference: &ImageRef) -> String {
    format!("{PREFIX}{reference}")
}
