//! A tiny OCI image on disk: one static program in one layer.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use shared::digest::{Digest, OciDigest};
use shared::ids::ImageRef;
use shared::manifest::ManifestId;
use shared::plan::{ImageOrigin, OciBlob, OciLayer, PlannedImage};

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

/// An image of a small layer and one of about so many bytes, which do not shrink; by its name its contents
/// differ from those of others.
pub(crate) fn build_large(layout: &Path, name: &str, bytes: usize) -> anyhow::Result<PlannedImage> {
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let mut large = Vec::with_capacity(bytes + 32);
    for counter in 0u64.. {
        if large.len() >= bytes {
            break;
        }
        large.extend(Sha256::digest(format!("{name} {counter}")));
    }
    let layers = [("small", name.as_bytes()), ("large", &large)].map(|(file, contents)| {
        let tar = tar(file, contents);
        let diff_id = oci_digest(&tar)?;
        let blob = blob(layout, "application/vnd.oci.image.layer.v1.tar", &tar)?;
        Ok(OciLayer { blob, diff_id })
    });
    let layers = layers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    image_of(layout, name, layers)
}

/// A tar of one file.
fn tar(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut head = [0u8; 512];
    head[..name.len()].copy_from_slice(name.as_bytes());
    head[100..107].copy_from_slice(b"0000644");
    head[108..115].copy_from_slice(b"0000000");
    head[116..123].copy_from_slice(b"0000000");
    head[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    head[136..147].copy_from_slice(b"00000000000");
    head[148..156].copy_from_slice(b"        ");
    head[156] = b'0';
    head[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = head.to_vec();
    tar.extend_from_slice(contents);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// An image of one layer that is in `layout` already; by its name it differs from others.
pub(crate) fn image(layout: &Path, name: &str, layer: OciLayer) -> anyhow::Result<PlannedImage> {
    image_of(layout, name, vec![layer])
}

fn image_of(layout: &Path, name: &str, layers: Vec<OciLayer>) -> anyhow::Result<PlannedImage> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|l| format!("\"{}\"", l.diff_id))
        .collect();
    let config = format!(
        r#"{{"architecture":"amd64","author":"{name}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config = blob(
        layout,
        "application/vnd.oci.image.config.v1+json",
        config.as_bytes(),
    )?;
    let descriptor = |blob: &OciBlob| {
        format!(
            r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
            blob.media_type, blob.digest, blob.size_bytes
        )
    };
    let listed: Vec<String> = layers.iter().map(|layer| descriptor(&layer.blob)).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        descriptor(&config),
        listed.join(",")
    );
    let manifest = blob(
        layout,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    )?;
    Ok(PlannedImage {
        reference: ImageRef::parse(name)?,
        origin: ImageOrigin::Layout(ManifestId(Digest::of(b"layout"))),
        manifest,
        config,
        layers,
        environment: vec!["PATH=/".into()],
    })
}
