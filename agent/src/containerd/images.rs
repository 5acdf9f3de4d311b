//! Images: brought into containerd from an OCI layout on disk or from a registry, and unpacked.
//!
//! Everything about an image that must be known (digests, sizes, order) comes from the plan: nothing
//! of the image is parsed here. Each step finds what an earlier attempt did, and goes on there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest, ListRequest,
    UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use futures_util::stream::{self, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use shared::digest::OciDigest;
use shared::ids::ImageRef;
use shared::plan::{OciBlob, PlannedImage};

use super::containers::LABEL_INSTANCE;
use super::content::{BlobError, BlobSource, Lease, Origin};
use super::transfer::Tally;
use super::{CallError, Containerd, QUICK, call, unless_gone};
use crate::pull::Puller;

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("layer {layer} unpacked to {actual}, the image says {expected}")]
    WrongLayer {
        layer: OciDigest,
        expected: OciDigest,
        actual: String,
    },
}

/// Where an image's blobs are.
#[derive(Clone, Copy)]
pub enum ImageSource<'a> {
    /// In a folder, as an OCI layout.
    Layout(&'a Path),
    Registry {
        puller: &'a Puller,
        tally: &'a Tally,
    },
}

impl ImageSource<'_> {
    fn layers_at_once(&self) -> usize {
        match self {
            // One disk: nothing is gained by taking turns at it.
            ImageSource::Layout(_) => 1,
            // A connection each; containerd's own default, too.
            ImageSource::Registry { .. } => 3,
        }
    }
}

/// One image on its way into the content store.
#[derive(Clone, Copy)]
struct Bringing<'a> {
    containerd: &'a Containerd,
    image: &'a PlannedImage,
    source: ImageSource<'a>,
    lease: &'a Lease,
}

impl Bringing<'_> {
    async fn blob(
        &self,
        blob: &OciBlob,
        is_manifest: bool,
        labels: &HashMap<String, String>,
    ) -> Result<(), BlobError> {
        let (containerd, lease) = (self.containerd, self.lease);
        match self.source {
            ImageSource::Layout(layout) => {
                let path = layout.join(PlannedImage::blob_path(&blob.digest));
                let source = BlobSource::File(&path);
                containerd.write_blob(blob, source, labels, lease).await
            }
            ImageSource::Registry { puller, tally } => {
                let origin = Origin {
                    puller,
                    image: &self.image.reference,
                    is_manifest,
                    tally,
                };
                containerd.pull_blob(blob, origin, labels, lease).await
            }
        }
    }
}

/// An image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownImage {
    /// The digest of the manifest that it points to.
    pub target: String,
    /// Whether this instance made it.
    pub ours: bool,
}

impl Containerd {
    /// The images of the namespace, by name.
    pub async fn list_images(
        &self,
        instance: &str,
    ) -> Result<BTreeMap<String, KnownImage>, CallError> {
        let request = self.request(ListImagesRequest::default());
        let answer = call("images.list", QUICK, self.images().list(request)).await?;
        Ok(answer
            .images
            .into_iter()
            .map(|image| {
                let ours = image.labels.get(LABEL_INSTANCE).map(String::as_str) == Some(instance);
                let target = image.target.map_or_else(String::new, |t| t.digest);
                (image.name, KnownImage { target, ours })
            })
            .collect())
    }

    /// Whether the last layer of an image is unpacked, hence all of them.
    pub async fn is_unpacked(&self, image: &PlannedImage) -> Result<bool, CallError> {
        match chain_ids(image).last() {
            Some(chain) => self.has_snapshot(chain).await,
            None => Ok(true),
        }
    }

    /// Brings an image in and unpacks it. Its record comes last: where that is, all is.
    pub async fn bring_image(
        &self,
        image: &PlannedImage,
        source: ImageSource<'_>,
        instance: &str,
    ) -> Result<(), ImportError> {
        let lease = lease_name(instance, image);
        // The same image under another name has the same lease: it must not end under this one.
        let _turn = self.imports.take(&lease).await;
        let lease = self.create_lease(&lease).await?;
        self.write_blobs(image, source, &lease).await?;
        self.unpack(image, instance, &lease).await?;
        self.record_image(image, instance).await?;
        // From here on, the image's record holds everything.
        self.end_lease(&lease).await?;
        Ok(())
    }

    async fn write_blobs(
        &self,
        image: &PlannedImage,
        source: ImageSource<'_>,
        lease: &Lease,
    ) -> Result<(), BlobError> {
        let none = HashMap::new();
        let bringing = Bringing {
            containerd: self,
            image,
            source,
            lease,
        };
        stream::iter(image.layers.iter().map(Ok))
            .try_for_each_concurrent(source.layers_at_once(), |layer| {
                bringing.blob(&layer.blob, false, &none)
            })
            .await?;
        // The collector follows these labels from the image's record to its blobs and snapshots.
        let mut config_labels = HashMap::new();
        if let Some(chain) = chain_ids(image).pop() {
            let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
            config_labels.insert(label, chain);
        }
        bringing.blob(&image.config, false, &config_labels).await?;
        let mut manifest_labels = HashMap::from([(
            "containerd.io/gc.ref.content.config".to_owned(),
            image.config.digest.to_string(),
        )]);
        for (i, layer) in image.layers.iter().enumerate() {
            let label = format!("containerd.io/gc.ref.content.l.{i}");
            manifest_labels.insert(label, layer.blob.digest.to_string());
        }
        bringing.blob(&image.manifest, true, &manifest_labels).await
    }

    /// Images that were begun to be brought in and are not there yet: the hex of their digests.
    pub async fn unfinished(&self, instance: &str) -> Result<BTreeSet<String>, CallError> {
        let request = self.request(ListRequest::default());
        let answer = call("leases.list", QUICK, self.leases().list(request)).await?;
        let prefix = lease_prefix(instance);
        let leases = answer.leases.iter();
        Ok(leases
            .filter_map(|lease| lease.id.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect())
    }

    /// Lets go of what there is of such an image: containerd collects its blobs and what was written of
    /// others.
    pub async fn drop_unfinished(&self, instance: &str, hex: &str) -> Result<(), CallError> {
        let name = format!("{}{hex}", lease_prefix(instance));
        self.end_lease(&Lease::named(&name)).await
    }

    async fn unpack(
        &self,
        image: &PlannedImage,
        instance: &str,
        lease: &Lease,
    ) -> Result<(), ImportError> {
        let kind = format!("snapshots/{}", self.snapshotter);
        let mut parent = String::new();
        for (layer, chain) in image.layers.iter().zip(chain_ids(image)) {
            // An image with the same layers may be unpacking this one: what it is at must not be
            // removed, nor taken for ours.
            let _turn = self.imports.take(&chain).await;
            if self.has_snapshot(&chain).await? && self.hold(lease, &kind, &chain).await? {
                parent = chain;
                continue;
            }
            // Other instances on this machine share the namespace.
            let key = format!("stokehold-extract-{instance}-{chain}");
            // Of an attempt that was cut off: half a layer is worth nothing.
            self.remove_snapshot(&key).await?;
            let mounts = self.prepare_snapshot(&key, &parent, Some(lease)).await?;
            let actual = self
                .apply_layer(descriptor(&layer.blob), mounts, lease)
                .await?;
            if actual != layer.diff_id.as_str() {
                self.remove_snapshot(&key).await?;
                return Err(ImportError::WrongLayer {
                    layer: layer.blob.digest.clone(),
                    expected: layer.diff_id.clone(),
                    actual,
                });
            }
            match self.commit_snapshot(&key, &chain, lease).await {
                Ok(()) => {}
                // Another instance was quicker.
                Err(error) if error.is_already_there() => self.remove_snapshot(&key).await?,
                Err(error) => return Err(error.into()),
            }
            parent = chain;
        }
        Ok(())
    }

    async fn record_image(&self, image: &PlannedImage, instance: &str) -> Result<(), CallError> {
        let record = Image {
            name: image.reference.to_string(),
            labels: HashMap::from([(LABEL_INSTANCE.to_owned(), instance.to_owned())]),
            target: Some(descriptor(&image.manifest)),
            ..Image::default()
        };
        let request = self.request(CreateImageRequest {
            image: Some(record.clone()),
            source_date_epoch: None,
        });
        match call("images.create", QUICK, self.images().create(request)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_already_there() => {}
            Err(error) => return Err(error),
        }
        let request = self.request(UpdateImageRequest {
            image: Some(record),
            update_mask: None,
            source_date_epoch: None,
        });
        call("images.update", QUICK, self.images().update(request))
            .await
            .map(|_| ())
    }

    /// Drops an image's record; the collector takes what only it held.
    pub async fn delete_image(&self, reference: &ImageRef) -> Result<(), CallError> {
        let request = self.request(DeleteImageRequest {
            name: reference.to_string(),
            sync: false,
            target: None,
        });
        unless_gone(call("images.delete", QUICK, self.images().delete(request)).await)
    }
}

pub(super) fn lease_prefix(instance: &str) -> String {
    format!("stokehold-import-{instance}-")
}

fn lease_name(instance: &str, image: &PlannedImage) -> String {
    format!("{}{}", lease_prefix(instance), image.manifest.digest.hex())
}

fn descriptor(blob: &OciBlob) -> Descriptor {
    Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size_bytes).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    }
}

/// The names of the snapshots that an image's layers make, bottom up (OCI image spec, "chain id").
pub fn chain_ids(image: &PlannedImage) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let chain = match chains.last() {
            None => layer.diff_id.to_string(),
            Some(parent) => {
                let both = format!("{parent} {}", layer.diff_id);
                format!("sha256:{}", hex::encode(Sha256::digest(both.as_bytes())))
            }
        };
        chains.push(chain);
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::planned_image;

    #[test]
    fn chain_ids_are_those_of_the_image_specification() {
        let mut image = planned_image();
        let layer = image.layers[0].clone();
        let diff = layer.diff_id.to_string();
        assert_eq!(chain_ids(&image), vec![diff.clone()]);
        image.layers.push(layer);
        let want = hex::encode(Sha256::digest(format!("{diff} {diff}").as_bytes()));
        assert_eq!(chain_ids(&image), vec![diff, format!("sha256:{want}")]);
    }
}
