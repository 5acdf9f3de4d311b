//! Archives as skopeo and Docker write them, and as an attacker would.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::digest::Digest;

use super::*;
use crate::manifest_of;

const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The files of a layout under construction.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        self.0
            .insert(PlannedImage::blob_path(&digest), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// An image of one layer; returns its manifest's descriptor.
    fn image(&mut self, architecture: &str, layer: &[u8], env: Value) -> Value {
        let config = json!({"os": "linux", "architecture": architecture, "config": {"Env": env},
            "rootfs": {"type": "layers", "diff_ids": [sha256(b"uncompressed")]}});
        let config = self.json("application/vnd.oci.image.config.v1+json", &config);
        let layer = self.blob(GZIP_LAYER, layer);
        self.json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({"schemaVersion": 2, "config": config, "layers": [layer]}),
        )
    }

    fn index(&mut self, manifests: Value) {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        self.0.insert("index.json".into(), index.into_bytes());
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        self.0.insert("oci-layout".into(), version.to_vec());
    }

    fn tar(&self) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (path, bytes) in &self.0 {
            let mut header = Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice())
                .expect("in memory");
        }
        tar.into_inner().expect("in memory")
    }

    fn read(&self, digest: &OciDigest) -> std::io::Result<Vec<u8>> {
        let bytes = self.0.get(&PlannedImage::blob_path(digest));
        bytes
            .cloned()
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn planned(&self) -> Result<PlannedImage, OciError> {
        let reference = ImageRef::parse("r:1").expect("valid");
        let layout = ManifestId(Digest::of(b"layout"));
        let index = &self.0["index.json"];
        planned_image(reference, layout, &|digest| self.read(digest), index)
    }
}

fn simple() -> Files {
    let mut files = Files::default();
    let mut manifest = files.image("amd64", b"layer", json!(["PATH=/bin", "A="]));
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "docker.io/lab/x:1"});
    files.index(json!([manifest]));
    files
}

fn unpack(tar: &[u8]) -> Result<(Layout, tempfile::TempDir), OciError> {
    let dir = tempfile::tempdir().expect("temporary folder");
    fs::write(dir.path().join("a.tar"), tar).expect("file");
    let layout = unpack_archive(&dir.path().join("a.tar"), &dir.path().join("out"))?;
    Ok((layout, dir))
}

fn refusal(tar: &[u8]) -> String {
    match unpack(tar) {
        Ok((layout, _)) => panic!("was unpacked: {layout:?}"),
        Err(error) => error.to_string(),
    }
}

/// A tar of one entry with any type and name, which the builder would refuse to write.
fn raw_entry(name: &str, kind: EntryType, bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

#[test]
fn an_archive_becomes_a_layout_of_the_one_image() {
    let (layout, dir) = unpack(&simple().tar()).expect("unpacks");
    assert_eq!(layout.reference.as_deref(), Some("docker.io/lab/x:1"));
    assert_eq!(layout.layers, 1);
    let manifest = manifest_of(&dir.path().join("out"), &|_| {}).expect("is a model");
    assert_eq!(manifest.description.kind, shared::manifest::Kind::Image);
    assert_eq!(manifest.files.len(), 5);
    let out = dir.path().join("out");
    let planned = planned_image(
        ImageRef::parse("r:1").expect("valid"),
        manifest.id(),
        &|digest| fs::read(out.join(PlannedImage::blob_path(digest))),
        &fs::read(out.join("index.json")).expect("there"),
    )
    .expect("valid");
    assert_eq!(planned.environment, ["PATH=/bin", "A="]);
    assert_eq!(planned.manifest.digest, layout.manifest);
    assert_eq!(planned.layers[0].diff_id, sha256(b"uncompressed"));
    assert_eq!(planned.layers[0].blob.media_type, GZIP_LAYER);
    check_complete(&planned, &manifest).expect("complete");
}

#[test]
fn the_same_image_under_another_name_is_the_same_manifest() {
    let id = |name: &str| {
        let mut files = Files::default();
        let mut manifest = files.image("amd64", b"layer", json!([]));
        manifest["annotations"] = json!({"io.containerd.image.name": name});
        files.index(json!([manifest]));
        let (layout, dir) = unpack(&files.tar()).expect("unpacks");
        assert_eq!(layout.reference.as_deref(), Some(name));
        manifest_of(&dir.path().join("out"), &|_| {})
            .expect("valid")
            .id()
    };
    assert_eq!(id("a:1"), id("b:2"));
}

#[test]
fn the_amd64_image_is_chosen_from_a_nested_index_and_only_its_blobs_are_kept() {
    let mut files = Files::default();
    let mut arm = files.image("arm64", b"arm layer", json!([]));
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut amd = files.image("amd64", b"amd layer", json!(["X=1"]));
    amd["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut attestation = files.image("unknown", b"attestation", json!([]));
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = json!({"schemaVersion": 2, "manifests": [arm, amd, attestation]});
    let mut outer = files.json("application/vnd.oci.image.index.v1+json", &inner);
    outer["annotations"] = json!({"io.containerd.image.name": "docker.io/x:1",
        "org.opencontainers.image.ref.name": "1"});
    files.index(json!([outer]));
    files.0.insert("manifest.json".into(), b"[]".to_vec());
    let (layout, dir) = unpack(&files.tar()).expect("unpacks");
    assert_eq!(layout.reference.as_deref(), Some("docker.io/x:1"));
    let blobs = fs::read_dir(dir.path().join("out/blobs/sha256")).expect("there");
    assert_eq!(blobs.count(), 3);
    assert_eq!(files.planned().expect("valid").environment, ["X=1"]);
}

#[test]
fn an_archive_without_or_with_two_images_for_this_platform_is_refused() {
    let mut files = Files::default();
    let arm = files.image("arm64", b"arm", json!([]));
    files.index(json!([arm]));
    assert!(refusal(&files.tar()).contains("it has linux/arm64"));
    let (one, two) = (
        files.image("amd64", b"1", json!([])),
        files.image("amd64", b"2", json!([])),
    );
    files.index(json!([one, two, one]));
    assert!(refusal(&files.tar()).contains("2 images"));
    files.index(json!([]));
    assert!(refusal(&files.tar()).contains("no image at all"));
}

#[test]
fn a_blob_that_is_missing_cut_or_changed_is_named() {
    let layer = PlannedImage::blob_path(&sha256(b"layer"));
    let mut files = simple();
    files.0.insert(layer.clone(), b"laYer".to_vec());
    assert!(refusal(&files.tar()).contains("other contents"));
    files.0.insert(layer.clone(), b"laye".to_vec());
    assert!(refusal(&files.tar()).contains("other contents"));
    files.0.remove(&layer);
    let text = refusal(&files.tar());
    assert!(text.contains("lacks blob") && text.contains(sha256(b"layer").hex()));
}

#[test]
fn links_devices_odd_names_and_doubles_are_refused() {
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::GNULongName,
    ] {
        let mut tar = raw_entry("blobs/sha256/x", kind, b"");
        tar.extend(simple().tar());
        assert!(
            refusal(&tar).contains("neither a file nor a folder"),
            "{kind:?}"
        );
    }
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "blobs/sha256/../../x",
        "x",
        "blobs/sha256/XY",
    ] {
        let mut tar = raw_entry(name, EntryType::Regular, b"x");
        tar.extend(simple().tar());
        assert!(refusal(&tar).contains("does not belong"), "{name}");
    }
    let mut tar = raw_entry("./index.json", EntryType::Regular, b"{}");
    tar.extend(simple().tar());
    assert!(refusal(&tar).contains("stands twice"));
}

#[test]
fn what_is_no_archive_says_what_it_is() {
    assert!(refusal(b"\x1f\x8b compressed").contains("gunzip"));
    assert!(refusal(&[7; 2000]).contains("not a tar file"));
    assert!(refusal(b"short").contains("ends in the middle"));
    assert!(refusal(b"").contains("no oci-layout"));
    assert!(refusal(&raw_entry("x.json", EntryType::Regular, b"[]")).contains("no oci-layout"));
    let tar = simple().tar();
    assert!(refusal(&tar[..514]).contains("cut off"));
}

#[test]
fn a_pax_header_may_give_a_size_but_no_name() {
    let mut tar = raw_entry("pax", EntryType::XHeader, b"13 path=../x\n");
    tar.extend(simple().tar());
    assert!(refusal(&tar).contains("no image layout has"));
    let mut huge = raw_entry("pax", EntryType::XHeader, b"21 size=99999999999\n\n");
    huge.extend(simple().tar());
    assert!(unpack(&huge).is_err());
    let mut times = raw_entry("pax", EntryType::XHeader, b"11 mtime=1\n");
    times.extend(simple().tar());
    assert!(unpack(&times).is_ok());
}

#[test]
fn a_folder_with_something_in_it_is_not_unpacked_into() {
    let dir = tempfile::tempdir().expect("temporary folder");
    fs::write(dir.path().join("a.tar"), simple().tar()).expect("file");
    let refused = unpack_archive(&dir.path().join("a.tar"), dir.path());
    assert!(matches!(refused, Err(OciError::NotEmpty { .. })));
}

/// The simple image with its manifest changed by `change`.
fn changed(change: impl Fn(&mut Value, &mut Files)) -> String {
    let mut files = Files::default();
    let descriptor = files.image("amd64", b"layer", json!([]));
    let digest = OciDigest::parse(descriptor["digest"].as_str().expect("text")).expect("valid");
    let bytes = files.read(&digest).expect("there");
    let mut manifest: Value = serde_json::from_slice(&bytes).expect("JSON");
    change(&mut manifest, &mut files);
    let changed = files.json("application/vnd.oci.image.manifest.v1+json", &manifest);
    files.index(json!([changed]));
    files.planned().expect_err("refused").to_string()
}

#[test]
fn an_image_that_breaks_a_rule_is_refused_with_the_rule() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 6] = [
        (|m| m["layers"] = json!([]), "no layers"),
        (
            |m| m["layers"] = Value::Array(vec![m["layers"][0].clone(); 129]),
            "129 layers",
        ),
        (
            |m| m["layers"] = Value::Array(vec![m["layers"][0].clone(); 2]),
            "1 rootfs.diff_ids",
        ),
        (
            |m| m["layers"][0]["mediaType"] = json!("application/x"),
            "\"application/x\"",
        ),
        (|m| m["layers"][0]["size"] = json!(1u64 << 60), "256 GiB"),
        (|m| m["schemaVersion"] = json!(1), "schemaVersion"),
    ];
    for (change, expected) in cases {
        let text = changed(|manifest, _| change(manifest));
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
    }
}

#[test]
fn an_environment_that_is_no_name_and_value_is_refused() {
    for env in [
        json!(["PATH"]),
        json!(["=x"]),
        json!(["A=\0"]),
        json!(vec!["A=b"; 600]),
    ] {
        let mut files = Files::default();
        let manifest = files.image("amd64", b"layer", env);
        files.index(json!([manifest]));
        assert!(
            files
                .planned()
                .expect_err("refused")
                .to_string()
                .contains("Env")
        );
    }
}

#[test]
fn a_layout_that_lacks_a_blob_is_not_complete() {
    let (_, dir) = unpack(&simple().tar()).expect("unpacks");
    let out = dir.path().join("out");
    fs::remove_file(out.join(PlannedImage::blob_path(&sha256(b"layer")))).expect("removed");
    let manifest = manifest_of(&out, &|_| {}).expect("valid");
    let planned = simple().planned().expect("valid");
    let refused = check_complete(&planned, &manifest);
    assert!(matches!(refused, Err(OciError::MissingBlob { .. })));
}

/// GNU tar's three formats, with the entries for folders and the leading `./` that tools leave in.
#[test]
fn archives_that_a_real_tool_wrote_unpack() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| dir.path().join(name);
    for (path, bytes) in &simple().0 {
        let path = at("layout").join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("folder");
        fs::write(path, bytes).expect("file");
    }
    for format in ["gnu", "pax", "ustar"] {
        let archive = at(format);
        let written = std::process::Command::new("tar")
            .arg(format!("--format={format}"))
            .arg("-cf")
            .args([&archive, Path::new("-C"), &at("layout"), Path::new(".")])
            .status()
            .expect("tar is on every machine that builds this");
        assert!(written.success(), "{format}");
        let out = at(&format!("{format}-out"));
        let layout = unpack_archive(&archive, &out).expect(format);
        assert!(layout.layers > 0 && layout.size_bytes > 0, "{layout:?}");
        assert!(out.join("index.json").is_file());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(
        flips in proptest::collection::vec((0usize..8000, any::<u8>()), 1..6), cut in 0usize..8000,
    ) {
        let mut tar = simple().tar();
        for (at, byte) in flips {
            let len = tar.len();
            tar[at % len] ^= byte;
        }
        tar.truncate(cut.max(1));
        let _ = unpack(&tar);
    }

    #[test]
    fn no_index_makes_the_parser_panic(text in ".{0,200}") {
        let mut files = simple();
        files.0.insert("index.json".into(), text.into_bytes());
        let _ = files.planned();
    }
}
