//! Image index, manifest and config: JSON of others, read defensively. Pure.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::digest::OciDigest;
use shared::plan::{OciBlob, OciLayer};

use super::{Image, MAX_IMAGE_BYTES, MAX_JSON_BYTES, MAX_LAYERS, OciError, sha256};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// What containerd unpacks. Docker's plain and gzip layers mean the same as OCI's.
const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
/// The name an image was exported under: containerd's and Docker's whole one, then OCI's, which
/// may be the tag alone.
const NAME_KEYS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// An index in a layout's index in a registry's index: deeper is nobody's.
const MAX_INDEX_DEPTH: usize = 3;
const MAX_DESCRIPTORS: usize = 256;
const MAX_ENVIRONMENT: usize = 512;
const MAX_ENVIRONMENT_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    /// Absent in indexes that very old tools wrote; what it means then follows from the place.
    #[serde(default)]
    media_type: String,
    digest: OciDigest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    schema_version: u32,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct ImageConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(rename = "Env", default)]
    env: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<OciDigest>,
}

/// A manifest that an index names, with the names that stood on the way to it.
struct Candidate {
    descriptor: Descriptor,
    reference: Option<String>,
}

type ReadBlob<'a> = &'a dyn Fn(&OciBlob) -> Result<Vec<u8>, OciError>;

/// Chooses the image for linux/amd64 of a layout and takes it apart.
pub(super) fn select(index_json: &[u8], read: ReadBlob<'_>) -> Result<Image, OciError> {
    if index_json.len() as u64 > MAX_JSON_BYTES {
        return Err(content("index.json", "is larger than 4 MiB"));
    }
    let index: Index = parse("index.json", index_json)?;
    let mut images = ours(index, usize::MAX, read)?;
    match images.len() {
        1 => Ok(images.remove(0)),
        count => Err(OciError::Several { count }),
    }
}

/// Chooses the first image for linux/amd64 of what a registry has under a name.
pub(super) fn select_first(top: &OciBlob, read: ReadBlob<'_>) -> Result<Image, OciError> {
    if top.media_type.starts_with(DOCKER_SCHEMA_1) {
        return Err(content(
            "image manifest",
            "has the form of before 2016 (schema 1), which holds no config: push the image again with a current tool",
        ));
    }
    if top.media_type.is_empty() || !is_manifest(&top.media_type) {
        let shown: String = top.media_type.chars().take(100).collect();
        let problem = format!("is of the kind {shown:?}: this is no container image");
        return Err(content("what the reference names", problem));
    }
    let index = Index {
        schema_version: 2,
        manifests: vec![Descriptor {
            media_type: top.media_type.clone(),
            digest: top.digest.clone(),
            size: top.size_bytes,
            platform: None,
            annotations: None,
        }],
    };
    Ok(ours(index, 1, read)?.remove(0))
}

/// Of an image or of an index; very old tools named none.
pub(super) fn is_manifest(media_type: &str) -> bool {
    [OCI_MANIFEST, DOCKER_MANIFEST, ""].contains(&media_type) || is_index(media_type)
}

fn is_index(media_type: &str) -> bool {
    [OCI_INDEX, DOCKER_INDEX].contains(&media_type)
}

/// At most `most` different images for linux/amd64, and at least one.
fn ours(index: Index, most: usize, read: ReadBlob<'_>) -> Result<Vec<Image>, OciError> {
    let mut candidates = Vec::new();
    gather(index, None, MAX_INDEX_DEPTH, read, &mut candidates)?;
    let mut images: Vec<Image> = Vec::new();
    let mut others = Vec::new();
    for candidate in candidates {
        let named = candidate.descriptor.platform.clone();
        if let Some(platform) = named.filter(|p| !p.is_ours()) {
            others.push(platform.to_string());
            continue;
        }
        let (image, platform) = read_image(&candidate, read)?;
        if !platform.is_ours() {
            others.push(platform.to_string());
        } else if images
            .iter()
            .all(|i| i.manifest.digest != image.manifest.digest)
        {
            images.push(image);
        }
        if images.len() == most {
            break;
        }
    }
    // Attestations stand in indexes as images for nothing.
    others.retain(|platform| platform != "unknown/unknown");
    if images.is_empty() {
        let found = if others.is_empty() {
            "no image at all".into()
        } else {
            others.join(", ")
        };
        return Err(OciError::NoPlatform { found });
    }
    Ok(images)
}

/// Walks nested indexes down to image manifests.
fn gather(
    index: Index,
    reference: Option<&String>,
    depth: usize,
    read: ReadBlob<'_>,
    into: &mut Vec<Candidate>,
) -> Result<(), OciError> {
    if index.schema_version != 2 {
        return Err(content("image index", "has a schemaVersion other than 2"));
    }
    for descriptor in index.manifests {
        if into.len() >= MAX_DESCRIPTORS {
            return Err(content("image index", "names more than 256 images"));
        }
        let named = descriptor.name();
        let reference = named.as_ref().or(reference);
        match descriptor.media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST | "" => into.push(Candidate {
                reference: reference.cloned(),
                descriptor,
            }),
            OCI_INDEX | DOCKER_INDEX if depth > 0 => {
                let blob = descriptor.blob("image index")?;
                let inner = parse("image index", &read_json(&blob, read)?)?;
                gather(inner, reference, depth - 1, read, into)?;
            }
            OCI_INDEX | DOCKER_INDEX => {
                return Err(content("image index", "is nested too deeply"));
            }
            // Signatures, attestations and the like hang beside images.
            _ => {}
        }
    }
    Ok(())
}

fn read_image(candidate: &Candidate, read: ReadBlob<'_>) -> Result<(Image, Platform), OciError> {
    let mut manifest_blob = candidate.descriptor.blob("image manifest")?;
    if manifest_blob.media_type.is_empty() {
        manifest_blob.media_type = OCI_MANIFEST.to_owned();
    }
    let manifest: ImageManifest = parse("image manifest", &read_json(&manifest_blob, read)?)?;
    if manifest.schema_version != 2 {
        return Err(content(
            "image manifest",
            "has a schemaVersion other than 2",
        ));
    }
    check_media_type("image config", &manifest.config.media_type, &CONFIGS)?;
    let config_blob = manifest.config.blob("image config")?;
    let config: ImageConfig = parse("image config", &read_json(&config_blob, read)?)?;
    let layers = layers(&manifest.layers, &config.rootfs)?;
    let total_bytes = layers
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.blob.size_bytes));
    if total_bytes > MAX_IMAGE_BYTES {
        return Err(content("image", "is larger than 256 GiB"));
    }
    let environment = config.config.and_then(|c| c.env).unwrap_or_default();
    check_environment(&environment)?;
    let image = Image {
        manifest: manifest_blob,
        config: config_blob,
        layers,
        environment,
        reference: candidate.reference.clone(),
    };
    Ok((image, config.platform))
}

/// Layers that their makers let nobody pass on lie elsewhere, at URLs that the manifest names.
fn check_passed_on(descriptor: &Descriptor) -> Result<(), OciError> {
    let media_type = &descriptor.media_type;
    if media_type.contains("foreign") || media_type.contains("nondistributable") {
        let problem = "is one that registries do not pass on (foreign): build the image without it";
        return Err(content("image layer", problem));
    }
    Ok(())
}

fn layers(descriptors: &[Descriptor], rootfs: &RootFs) -> Result<Vec<OciLayer>, OciError> {
    if rootfs.kind != "layers" {
        return Err(content(
            "image config",
            "has a rootfs.type other than `layers`",
        ));
    }
    if descriptors.len() > MAX_LAYERS {
        let problem = format!("has {} layers, over {MAX_LAYERS}", descriptors.len());
        return Err(content("image manifest", problem));
    }
    if descriptors.is_empty() {
        return Err(content("image manifest", "has no layers"));
    }
    if descriptors.len() != rootfs.diff_ids.len() {
        let problem = format!(
            "has {} rootfs.diff_ids, its manifest has {} layers",
            rootfs.diff_ids.len(),
            descriptors.len()
        );
        return Err(content("image config", problem));
    }
    let pairs = descriptors.iter().zip(&rootfs.diff_ids);
    pairs
        .map(|(descriptor, diff_id)| {
            check_passed_on(descriptor)?;
            check_media_type("image layer", &descriptor.media_type, &LAYERS)?;
            Ok(OciLayer {
                blob: descriptor.blob("image layer")?,
                diff_id: diff_id.clone(),
            })
        })
        .collect()
}

fn check_environment(environment: &[String]) -> Result<(), OciError> {
    let bytes: usize = environment.iter().map(String::len).sum();
    if environment.len() > MAX_ENVIRONMENT || bytes > MAX_ENVIRONMENT_BYTES {
        return Err(content(
            "image config",
            "has more than 512 variables or 64 KiB in Env",
        ));
    }
    let broken = environment.iter().find(|text| {
        let name = text.split_once('=').map(|(name, _)| name);
        name.is_none_or(str::is_empty) || text.contains('\0')
    });
    match broken {
        Some(text) => {
            let shown: String = text.chars().take(40).collect();
            Err(content(
                "image config",
                format!("has {shown:?} in Env, expected NAME=value"),
            ))
        }
        None => Ok(()),
    }
}

fn check_media_type(what: &str, found: &str, known: &[&str]) -> Result<(), OciError> {
    if known.contains(&found) {
        return Ok(());
    }
    let shown: String = found.chars().take(100).collect();
    let problem = format!(
        "has the media type {shown:?}, expected one of {}",
        known.join(", ")
    );
    Err(content(what, problem))
}

/// Reads a JSON blob and checks it against its descriptor.
fn read_json(blob: &OciBlob, read: ReadBlob<'_>) -> Result<Vec<u8>, OciError> {
    if blob.size_bytes > MAX_JSON_BYTES {
        return Err(content(&blob.digest.to_string(), "is larger than 4 MiB"));
    }
    let bytes = read(blob)?;
    if bytes.len() as u64 != blob.size_bytes || sha256(&bytes) != blob.digest {
        return Err(OciError::WrongContent {
            digest: blob.digest.clone(),
        });
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Json {
        what: what.to_owned(),
        source,
    })
}

fn content(what: &str, problem: impl Into<String>) -> OciError {
    OciError::Content {
        what: what.to_owned(),
        problem: problem.into(),
    }
}

impl Descriptor {
    fn blob(&self, what: &str) -> Result<OciBlob, OciError> {
        if self.size > MAX_IMAGE_BYTES {
            return Err(content(what, "is larger than 256 GiB"));
        }
        Ok(OciBlob {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size_bytes: self.size,
        })
    }

    fn name(&self) -> Option<String> {
        let annotations = self.annotations.as_ref()?;
        let name = NAME_KEYS.iter().find_map(|key| annotations.get(*key))?;
        Some(name.chars().take(255).collect())
    }
}

impl Platform {
    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |text: &str| text.chars().take(20).collect::<String>();
        write!(f, "{}/{}", part(&self.os), part(&self.architecture))
    }
}
