//! Takes OCI images apart, so that nobody who is root has to.
//!
//! The CLI unpacks an archive (`skopeo copy ... oci-archive:FILE`, `docker save`) into a folder that
//! holds one image's blobs and nothing else; it travels as a model of kind `image`. The scheduler
//! then reads image manifest and config, and agents get a [`PlannedImage`].
//!
//! What always holds: every blob that is used has the SHA-256 and the size that its descriptor says;
//! names, counts and sizes are bounded before anything is read or written; links, devices and unknown
//! files in an archive are refused. One image for linux/amd64 is chosen; two are an error.

mod archive;
mod image;
mod tar;

use std::io;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use shared::digest::OciDigest;
use shared::ids::ImageRef;
use shared::manifest::{Manifest, ManifestId};
use shared::plan::{ImageOrigin, OciBlob, OciLayer, PlannedImage};

pub use archive::{Layout, unpack_archive};

/// Image manifests, configs and indexes are some KiB.
pub const MAX_JSON_BYTES: u64 = 4 << 20;
/// What overlayfs can stack and containerd accepts.
pub const MAX_LAYERS: usize = 128;
/// All blobs of one image together.
pub const MAX_IMAGE_BYTES: u64 = 256 << 30;

/// Why an archive or an image was refused.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("read image archive {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {path:?}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("folder {path:?} is not empty: name a new one to unpack into")]
    NotEmpty { path: PathBuf },
    #[error(
        "{path:?} is not an OCI archive ({problem}): write one with `skopeo copy SOURCE oci-archive:FILE` or `docker save`"
    )]
    NotAnArchive { path: PathBuf, problem: String },
    #[error("image archive entry {name:?} {problem}")]
    Entry { name: String, problem: &'static str },
    #[error("read blob {digest}")]
    ReadBlob {
        digest: OciDigest,
        #[source]
        source: io::Error,
    },
    #[error("image lacks blob {digest}: write the archive again")]
    MissingBlob { digest: OciDigest },
    #[error("blob {digest} has other contents than its digest says: write the archive again")]
    WrongContent { digest: OciDigest },
    #[error("{what} is not valid JSON of its kind")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what} {problem}")]
    Content { what: String, problem: String },
    #[error("image has no variant for linux/amd64; it has {found}: build or export that one")]
    NoPlatform { found: String },
    #[error("archive holds {count} images for linux/amd64: export one at a time")]
    Several { count: usize },
}

/// What an image is made of, from its manifest and config.
pub(crate) struct Image {
    pub(crate) manifest: OciBlob,
    pub(crate) config: OciBlob,
    pub(crate) layers: Vec<OciLayer>,
    pub(crate) environment: Vec<String>,
    /// The name that the archive gives it.
    pub(crate) reference: Option<String>,
}

impl Image {
    /// Every blob once, in the order manifest, config, layers.
    pub(crate) fn blobs(&self) -> Vec<&OciBlob> {
        let mut blobs = vec![&self.manifest, &self.config];
        for layer in &self.layers {
            if !blobs.iter().any(|b| b.digest == layer.blob.digest) {
                blobs.push(&layer.blob);
            }
        }
        blobs
    }
}

/// What an agent needs to know of an image, from the `index.json` of its layout and a way to read
/// its blobs by digest (called for JSON blobs only; what it gives is checked against the digest).
pub fn planned_image(
    reference: ImageRef,
    layout: ManifestId,
    read_blob: &dyn Fn(&OciDigest) -> io::Result<Vec<u8>>,
    index_json: &[u8],
) -> Result<PlannedImage, OciError> {
    let read = |blob: &OciBlob| {
        read_blob(&blob.digest).map_err(|source| OciError::ReadBlob {
            digest: blob.digest.clone(),
            source,
        })
    };
    let image = image::select(index_json, &read)?;
    Ok(planned(reference, ImageOrigin::Layout(layout), image))
}

/// What an agent needs to know of an image of a registry, from the manifest or index that its reference
/// means there and a way to read other manifests and configs by digest, each checked against it. Of
/// several variants for linux/amd64 the first is taken, as an index puts the general one first.
pub fn planned_of_registry(
    reference: ImageRef,
    top: &OciBlob,
    read_blob: &dyn Fn(&OciBlob) -> Result<Vec<u8>, OciError>,
) -> Result<PlannedImage, OciError> {
    let image = image::select_first(top, read_blob)?;
    Ok(planned(reference, ImageOrigin::Registry, image))
}

fn planned(reference: ImageRef, origin: ImageOrigin, image: Image) -> PlannedImage {
    PlannedImage {
        reference,
        origin,
        manifest: image.manifest,
        config: image.config,
        layers: image.layers,
        environment: image.environment,
    }
}

/// Whether registries keep what has this media type among manifests, not among blobs.
pub fn is_manifest(media_type: &str) -> bool {
    image::is_manifest(media_type)
}

/// Whether the layout's manifest has every blob of the image, in the size that the image asks for.
pub fn check_complete(image: &PlannedImage, layout: &Manifest) -> Result<(), OciError> {
    let layers = image.layers.iter().map(|layer| &layer.blob);
    for blob in [&image.manifest, &image.config].into_iter().chain(layers) {
        let path = PlannedImage::blob_path(&blob.digest);
        let file = layout.files.iter().find(|file| file.path == path);
        match file {
            Some(file) if file.size_bytes == blob.size_bytes => {}
            Some(_) => {
                return Err(OciError::WrongContent {
                    digest: blob.digest.clone(),
                });
            }
            None => {
                return Err(OciError::MissingBlob {
                    digest: blob.digest.clone(),
                });
            }
        }
    }
    Ok(())
}

pub(crate) fn sha256(bytes: &[u8]) -> OciDigest {
    finish_sha256(Sha256::new_with_prefix(bytes))
}

pub(crate) fn finish_sha256(hasher: Sha256) -> OciDigest {
    OciDigest::parse(&format!("sha256:{}", hex::encode(hasher.finalize())))
        .expect("the hex of a SHA-256 is a digest")
}

#[cfg(test)]
mod tests;
