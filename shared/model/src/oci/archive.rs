//! Unpacks one image of an archive. Runs as an ordinary user, on a file that nobody vouches for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shared::digest::OciDigest;
use shared::plan::{OciBlob, PlannedImage};

use super::tar::{Place, WalkError};
use super::{Image, MAX_JSON_BYTES, OciError, finish_sha256, image, tar};

/// Docker writes these beside the layout for its older self; they say nothing that we need.
const IGNORED: [&str; 2] = ["manifest.json", "repositories"];
const BUFFER_BYTES: usize = 256 << 10;

/// An unpacked image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The name that the archive gives the image, if any: `stokehold.local/runtime-mlflow:1`.
    pub reference: Option<String>,
    /// The digest of the image's manifest.
    pub manifest: OciDigest,
    pub layers: usize,
    /// Of all blobs.
    pub size_bytes: u64,
}

/// Unpacks the linux/amd64 image of the archive `tar` into the new or empty folder `into`, as an OCI
/// layout that holds this image only: the same image gives the same files, whatever it is called.
pub fn unpack_archive(tar: &Path, into: &Path) -> Result<Layout, OciError> {
    let mut archive = Archive::open(tar)?;
    let index = archive.small("index.json")?;
    let version = archive.small("oci-layout")?;
    check_version(&version)?;
    let archive = RefCell::new(archive);
    let image = image::select(&index, &|blob| archive.borrow_mut().small_blob(blob))?;
    let mut archive = archive.into_inner();
    let blobs = image.blobs();
    // All are looked up before the first is written: a missing one should cost nothing.
    for blob in &blobs {
        archive.blob_place(blob)?;
    }
    prepare(into)?;
    for blob in &blobs {
        archive.copy(blob, &into.join(PlannedImage::blob_path(&blob.digest)))?;
    }
    write_new(&into.join("index.json"), &index_of(&image))?;
    write_new(
        &into.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(Layout {
        size_bytes: blobs.iter().map(|b| b.size_bytes).sum(),
        reference: image.reference.clone(),
        manifest: image.manifest.digest.clone(),
        layers: image.layers.len(),
    })
}

struct Archive {
    path: PathBuf,
    file: File,
    places: BTreeMap<String, Place>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, OciError> {
        let read = |source| OciError::Read {
            path: path.to_owned(),
            source,
        };
        let not_an_archive = |problem: &str| OciError::NotAnArchive {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let mut file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.is_dir() {
            return Err(not_an_archive("it is a folder"));
        }
        let mut magic = [0; 2];
        if file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b] {
            return Err(not_an_archive("it is compressed: gunzip it first"));
        }
        let places = match tar::list(&mut file) {
            Ok(places) => places,
            Err(WalkError::Io(source)) => return Err(read(source)),
            Err(WalkError::NotTar(problem)) => return Err(not_an_archive(problem)),
            Err(WalkError::Refused(error)) => return Err(error),
        };
        if !places.contains_key("oci-layout") || !places.contains_key("index.json") {
            return Err(not_an_archive("it holds no oci-layout and index.json"));
        }
        if let Some(name) = places.keys().find(|name| !is_known(name)) {
            return Err(OciError::Entry {
                name: name.chars().take(120).collect(),
                problem: "does not belong in an image layout",
            });
        }
        let path = path.to_owned();
        Ok(Self { path, file, places })
    }

    fn read_error(&self, source: io::Error) -> OciError {
        OciError::Read {
            path: self.path.clone(),
            source,
        }
    }

    /// A whole small file.
    fn small(&mut self, name: &str) -> Result<Vec<u8>, OciError> {
        let place = self.places[name];
        if place.size_bytes > MAX_JSON_BYTES {
            return Err(OciError::Entry {
                name: name.to_owned(),
                problem: "is larger than 4 MiB",
            });
        }
        self.read(place)
    }

    /// A whole JSON blob; the caller bounds its size and checks its digest.
    fn small_blob(&mut self, blob: &OciBlob) -> Result<Vec<u8>, OciError> {
        let place = self.blob_place(blob)?;
        self.read(place)
    }

    fn read(&mut self, place: Place) -> Result<Vec<u8>, OciError> {
        let mut bytes = vec![0; place.size_bytes as usize];
        self.file
            .seek(SeekFrom::Start(place.offset_bytes))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| self.read_error(e))?;
        Ok(bytes)
    }

    /// Where a blob lies; it has the size that its descriptor says.
    fn blob_place(&self, blob: &OciBlob) -> Result<Place, OciError> {
        let digest = blob.digest.clone();
        match self.places.get(&PlannedImage::blob_path(&digest)) {
            Some(place) if place.size_bytes == blob.size_bytes => Ok(*place),
            Some(_) => Err(OciError::WrongContent { digest }),
            None => Err(OciError::MissingBlob { digest }),
        }
    }

    /// Copies a blob out and checks its digest on the way.
    fn copy(&mut self, blob: &OciBlob, to: &Path) -> Result<(), OciError> {
        let write = |source| OciError::Write {
            path: to.to_owned(),
            source,
        };
        let place = self.blob_place(blob)?;
        let mut out = create_new(to)?;
        self.file
            .seek(SeekFrom::Start(place.offset_bytes))
            .map_err(|e| self.read_error(e))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut left = place.size_bytes;
        while left > 0 {
            let want = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            self.file
                .read_exact(&mut buffer[..want])
                .map_err(|e| self.read_error(e))?;
            hasher.update(&buffer[..want]);
            out.write_all(&buffer[..want]).map_err(write)?;
            left -= want as u64;
        }
        if finish_sha256(hasher) != blob.digest {
            drop(out);
            // The error below says what is wrong; a leftover in a folder that failed harms nobody.
            let _ = fs::remove_file(to);
            return Err(OciError::WrongContent {
                digest: blob.digest.clone(),
            });
        }
        Ok(())
    }
}

fn is_known(name: &str) -> bool {
    name == "oci-layout"
        || name == "index.json"
        || IGNORED.contains(&name)
        || name
            .strip_prefix("blobs/sha256/")
            .is_some_and(|hex| OciDigest::parse(&format!("sha256:{hex}")).is_ok())
}

fn check_version(bytes: &[u8]) -> Result<(), OciError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        image_layout_version: String,
    }
    let version: Version = serde_json::from_slice(bytes).map_err(|source| OciError::Json {
        what: "oci-layout".into(),
        source,
    })?;
    if version.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    let shown: String = version.image_layout_version.chars().take(20).collect();
    Err(OciError::Content {
        what: "oci-layout".into(),
        problem: format!("has version {shown:?}, this program knows 1.x"),
    })
}

/// An index of this image alone, without its names, which are not part of its contents.
fn index_of(image: &Image) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: [Descriptor<'a>; 1],
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Descriptor<'a> {
        media_type: &'a str,
        digest: &'a OciDigest,
        size: u64,
        platform: Platform<'a>,
    }
    #[derive(Serialize)]
    struct Platform<'a> {
        architecture: &'a str,
        os: &'a str,
    }
    let index = Index {
        schema_version: 2,
        media_type: "application/vnd.oci.image.index.v1+json",
        manifests: [Descriptor {
            media_type: &image.manifest.media_type,
            digest: &image.manifest.digest,
            size: image.manifest.size_bytes,
            platform: Platform {
                architecture: "amd64",
                os: "linux",
            },
        }],
    };
    serde_json::to_vec(&index).expect("text and numbers are JSON")
}

fn prepare(into: &Path) -> Result<(), OciError> {
    let write = |source| OciError::Write {
        path: into.to_owned(),
        source,
    };
    fs::create_dir_all(into).map_err(write)?;
    if fs::read_dir(into).map_err(write)?.next().is_some() {
        return Err(OciError::NotEmpty {
            path: into.to_owned(),
        });
    }
    fs::create_dir_all(into.join("blobs/sha256")).map_err(write)
}

fn create_new(path: &Path) -> Result<File, OciError> {
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    opened.map_err(|source| OciError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), OciError> {
    create_new(path)?
        .write_all(bytes)
        .map_err(|source| OciError::Write {
            path: path.to_owned(),
            source,
        })
}
