//! Builds a view: hard links to complete objects, in folders of its own.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::errno::Errno;
use shared::manifest::{Manifest, ManifestId};

use super::disk::{ObjectKey, sync_folder};
use super::error::{FileError, PublishError};
use super::object::Object;
use super::table::ViewRecord;

/// What a replica, which has a uid of its own, may do in a view: look.
const FOLDER_MODE: u32 = 0o755;

/// Builds the view in the new folder `staging` and syncs it, so that only its name is missing.
pub(super) fn build(
    id: ManifestId,
    manifest: &Manifest,
    objects: &[Arc<Object>],
    staging: &Path,
) -> Result<ViewRecord, PublishError> {
    let by_key: HashMap<ObjectKey, &Arc<Object>> = objects.iter().map(|o| (o.key(), o)).collect();
    let mut record = ViewRecord {
        objects: BTreeSet::new(),
        own_bytes: 0,
        size_bytes: manifest.size_bytes(),
        last_used: SystemTime::now(),
    };
    let mut folders = BTreeSet::new();
    make_folder(staging, &mut folders)?;
    for file in &manifest.files {
        let key = ObjectKey::of(file);
        let complete = by_key.get(&key).filter(|object| object.is_complete());
        let object = complete.ok_or_else(|| PublishError::Incomplete {
            model: id,
            file: file.path.clone(),
        })?;
        let mut parent = staging.to_owned();
        let mut parts = file.path.split('/').peekable();
        while let Some(part) = parts.next() {
            parent.push(part);
            if parts.peek().is_some() {
                make_folder(&parent, &mut folders)?;
            }
        }
        record.own_bytes += place(object, &parent)?;
        record.objects.insert(key);
    }
    // Inner folders before outer ones.
    for folder in folders.iter().rev() {
        sync_folder(folder)?;
    }
    Ok(record)
}

/// The one step that makes a view visible. If it is there already, the same files are.
pub(super) fn give_name(staging: &Path, path: &Path) -> Result<(), PublishError> {
    match fs::rename(staging, path) {
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(n) if n == Errno::ENOTEMPTY as i32 || n == Errno::EEXIST as i32) =>
        {
            fs::remove_dir_all(staging).map_err(FileError::of("remove", staging))?;
        }
        Err(e) => return Err(FileError::of("rename", staging)(e).into()),
    }
    let views = path.parent().expect("a view lies in the folder of views");
    Ok(sync_folder(views)?)
}

/// Links an object's file; returns the bytes that are not shared with it.
fn place(object: &Object, to: &Path) -> Result<u64, FileError> {
    let data = object.data_path();
    match fs::hard_link(&data, to) {
        Ok(()) => Ok(0),
        // ext4 allows 65,000 names of a file; a Python tree has that many empty ones.
        Err(e) if e.raw_os_error() == Some(Errno::EMLINK as i32) => {
            let copied = fs::copy(&data, to).map_err(FileError::of("copy to", to))?;
            let synced = fs::File::open(to).and_then(|file| file.sync_all());
            synced.map_err(FileError::of("sync", to))?;
            Ok(copied)
        }
        Err(e) => Err(FileError::of("link", to)(e)),
    }
}

fn make_folder(path: &Path, made: &mut BTreeSet<PathBuf>) -> Result<(), FileError> {
    if made.contains(path) {
        return Ok(());
    }
    let created = DirBuilder::new().mode(FOLDER_MODE).create(path);
    created
        // The process's umask may have taken bits away.
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE)))
        .map_err(|e: io::Error| FileError::of("make folder", path)(e))?;
    made.insert(path.to_owned());
    Ok(())
}
