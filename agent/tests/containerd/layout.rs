//! A tiny OCI image on disk: one static program in one layer.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use shared::digest::{Digest, OciDigest};
use shared::ids::ImageRef;
use shared::manifest::ManifestId;
use shared::plan::{OciBlob, OciLayer, PlannedImage};

pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn oci_digest(bytes: &[u8]) -> anyhow::Result<OciDigest> {
    let text = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
    Ok(OciDigest::parse(&text)?)
}

fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> anyhow::Result<OciBlob> {
    let digest = oci_digest(bytes)?;
    fs::write(layout.join(PlannedImage::blob_path(&digest)), bytes)?;
    Ok(OciBlob {
        media_type: media_type.to_owned(),
        digest,
        size_bytes: bytes.len() as u64,
    })
}

/// Builds the image in `layout`, as it would lie in the model cache.
pub(crate) fn build(work: &Path, layout: &Path) -> anyhow::Result<PlannedImage> {
    let root = work.join("root");
    fs::create_dir_all(&root)?;
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containerd/guest.rs");
    run(Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-O",
        ])
        .arg(source)
        .arg("-o")
        .arg(root.join("guest")))?;
    let tar = work.join("layer.tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "--mtime=@0", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&tar)
        .arg("guest"))?;
    let diff_id = oci_digest(&fs::read(&tar)?)?;
    run(Command::new("gzip").arg("-n").arg(&tar))?;
    let packed = fs::read(work.join("layer.tar.gz"))?;
    let layer = blob(
        layout,
        "application/vnd.oci.image.layer.v1.tar+gzip",
        &packed,
    )?;
    let layer = OciLayer {
        blob: layer,
        diff_id,
    };
    image(layout, "stokehold.local/guest:1", layer)
}

/// An image of one layer that is in `layout` already; by its name it differs from others.
pub(crate) fn image(layout: &Path, name: &str, layer: OciLayer) -> anyhow::Result<PlannedImage> {
    let diff_id = &layer.diff_id;
    let config = format!(
        r#"{{"architecture":"amd64","author":"{name}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let config = blob(
        layout,
        "application/vnd.oci.image.config.v1+json",
        config.as_bytes(),
    )?;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"{}","digest":"{}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        config.media_type,
        config.digest,
        config.size_bytes,
        layer.blob.media_type,
        layer.blob.digest,
        layer.blob.size_bytes
    );
    let manifest = blob(
        layout,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    )?;
    Ok(PlannedImage {
        reference: ImageRef::parse(name)?,
        layout: ManifestId(Digest::of(b"layout")),
        manifest,
        config,
        layers: vec![layer],
        environment: vec!["PATH=/".into()],
    })
}
