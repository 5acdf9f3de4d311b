//! A real folder, and the states that crashes leave in it.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use shared::digest::{Digest, file_digest};
use shared::manifest::{ChunkRef, Description, FileEntry, Manifest, chunk_size_bytes};

use super::*;

const MIB: usize = 1 << 20;

/// A model and its files' bytes.
struct Model {
    manifest: Manifest,
    id: ManifestId,
    bytes: BTreeMap<String, Vec<u8>>,
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let source = blake3::Hasher::new_keyed(&[seed; 32]);
    source.finalize_xof().fill(&mut bytes);
    bytes
}

/// Files by path; a name that ends in `!` is executable.
fn model(files: &[(&str, Vec<u8>)]) -> Model {
    let dir = temporary();
    for (path, bytes) in files {
        let path_there = dir.path().join(path);
        fs::create_dir_all(path_there.parent().expect("has one")).expect("folder");
        fs::write(&path_there, bytes).expect("file");
        let mode = if path.ends_with('!') { 0o755 } else { 0o644 };
        fs::set_permissions(&path_there, fs::Permissions::from_mode(mode)).expect("mode");
    }
    let manifest = crate::manifest_of(dir.path(), &|_| {}).expect("is a model");
    Model {
        id: manifest.id(),
        manifest,
        bytes: files
            .iter()
            .map(|(p, b)| ((*p).to_owned(), b.clone()))
            .collect(),
    }
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

fn cache(dir: &tempfile::TempDir) -> Cache {
    Cache::open(&dir.path().join("cache"), Bytes::mib(100)).expect("opens")
}

impl Model {
    fn chunk(&self, file: &FileEntry, chunk: ChunkRef) -> VerifiedChunk {
        let bytes = &self.bytes[&file.path];
        let from = chunk.offset_bytes as usize;
        let bytes = bytes[from..from + chunk.len_bytes as usize].to_vec();
        VerifiedChunk::verify(chunk, bytes.into()).expect("right bytes")
    }

    /// Writes up to `limit` missing chunks of each object; returns how many were missing.
    fn fill(&self, reservation: &Reservation, limit: usize) -> usize {
        let mut missing = 0;
        for object in reservation.objects() {
            let chunks = object.open().expect("opens");
            missing += chunks.len();
            for chunk in chunks.into_iter().take(limit) {
                let verified = self.chunk(object.entry(), chunk);
                object.write(&verified).expect("written");
            }
        }
        missing
    }

    /// Fetches what is missing and publishes; returns the number of chunks that were missing.
    fn publish(&self, cache: &Cache) -> usize {
        let reservation = cache.reserve(self.id, &self.manifest).expect("fits");
        let missing = self.fill(&reservation, usize::MAX);
        let mut objects = reservation.objects().iter();
        objects.by_ref().for_each(|o| o.finish().expect("finishes"));
        reservation.publish(&self.manifest).expect("published");
        self.check_view(cache);
        missing
    }

    fn check_view(&self, cache: &Cache) {
        let path = cache.view(&self.id).expect("is there");
        for (name, bytes) in &self.bytes {
            assert_eq!(&fs::read(path.join(name)).expect("there"), bytes, "{name}");
        }
    }

    fn object_folder(&self, dir: &tempfile::TempDir, file: &str) -> PathBuf {
        let entry = self.manifest.files.iter().find(|f| f.path == file);
        let key = ObjectKey::of(entry.expect("is in the model"));
        dir.path().join("cache/objects").join(key.folder_name())
    }
}

fn two_files() -> Model {
    model(&[("d/large", bytes(9 * MIB, 1)), ("small", bytes(5, 2))])
}

#[test]
fn a_view_is_whole_read_only_and_still_there_after_a_restart() {
    let dir = temporary();
    let model = model(&[
        ("a/b/large", bytes(9 * MIB, 1)),
        ("empty", vec![]),
        ("same", b"x".to_vec()),
        ("run!", b"x".to_vec()),
    ]);
    let cache_one = cache(&dir);
    assert_eq!(cache_one.view(&model.id), None);
    assert_eq!(model.publish(&cache_one), 5);
    let path = cache_one.view(&model.id).expect("is there");
    let mode = |name: &str| {
        let metadata = fs::metadata(path.join(name)).expect("there");
        metadata.permissions().mode() & 0o7777
    };
    let modes = ["a/b/large", "empty", "same", "run!", "a", "."].map(mode);
    assert_eq!(modes, [0o444, 0o444, 0o444, 0o555, 0o755, 0o755]);
    assert!(matches!(
        Cache::open(&dir.path().join("cache"), Bytes::mib(1)),
        Err(OpenError::Busy { .. })
    ));
    drop(cache_one);
    let again = cache(&dir);
    model.check_view(&again);
    assert_eq!(again.list()[0].size_bytes, model.manifest.size_bytes());
    assert_eq!(again.usage().used, Bytes(model.manifest.size_bytes()));
    assert_eq!(model.publish(&again), 0, "nothing is fetched twice");
}

#[test]
fn only_the_right_bytes_at_the_right_place_can_be_written() {
    let dir = temporary();
    let model = two_files();
    let reservation = cache(&dir)
        .reserve(model.id, &model.manifest)
        .expect("fits");
    let large = &reservation.objects()[0];
    let chunk = large.entry().chunk_refs().next().expect("has one");
    for len in [0, 1, 4 * MIB, 9 * MIB] {
        assert!(VerifiedChunk::verify(chunk, vec![0; len].into()).is_err());
    }
    let verified = model.chunk(large.entry(), chunk);
    let small = &reservation.objects()[1];
    small.open().expect("opens");
    assert!(matches!(
        small.write(&verified),
        Err(ObjectError::Foreign { .. })
    ));
    assert!(matches!(
        large.write(&verified),
        Err(ObjectError::Closed { .. })
    ));
    assert!(matches!(
        small.finish(),
        Err(ObjectError::Incomplete { .. })
    ));
    let refused = reservation.publish(&model.manifest);
    assert!(matches!(refused, Err(PublishError::Incomplete { file, .. }) if file == "d/large"));
}

#[test]
fn what_was_synced_is_taken_up_after_a_crash_and_what_was_not_is_fetched_again() {
    let dir = temporary();
    let model = two_files();
    let cache_one = cache(&dir);
    let reservation = cache_one.reserve(model.id, &model.manifest).expect("fits");
    assert_eq!(model.fill(&reservation, 1), 4);
    let large = reservation.objects()[0].clone();
    large.sync_now_and_then().expect("syncs");
    // One more, which nobody syncs.
    let next = large.open().expect("is open")[0];
    large
        .write(&model.chunk(large.entry(), next))
        .expect("written");
    assert_eq!(large.open().expect("is open").len(), 1);
    // Nothing is closed or finished: the process is gone.
    drop((large, reservation, cache_one));
    assert_eq!(model.publish(&cache(&dir)), 3);
}

/// A cache whose large file has two of its three chunks synced.
fn half_filled(model: &Model) -> tempfile::TempDir {
    let dir = temporary();
    let cache = cache(&dir);
    let reservation = cache.reserve(model.id, &model.manifest).expect("fits");
    model.fill(&reservation, 2);
    reservation.objects()[0].sync_now_and_then().expect("syncs");
    dir
}

#[test]
fn whatever_a_crash_did_to_an_object_no_wrong_byte_is_published() {
    let model = two_files();
    let assert_refetched = |what: &str, chunks: usize, damage: &dyn Fn(&Path)| {
        let dir = half_filled(&model);
        damage(&model.object_folder(&dir, "d/large"));
        let cache = cache(&dir);
        assert_eq!(model.publish(&cache), chunks, "{what}");
    };
    assert_refetched("nothing", 2, &|_| {});
    assert_refetched("have is gone", 4, &|folder| {
        fs::remove_file(folder.join("have")).expect("removed");
    });
    assert_refetched("have is cut", 4, &|folder| {
        let have = fs::read(folder.join("have")).expect("there");
        fs::write(folder.join("have"), &have[..have.len() - 1]).expect("cut");
    });
    assert_refetched("have is empty", 4, &|folder| {
        fs::write(folder.join("have"), b"").expect("emptied");
    });
    assert_refetched("have is garbage", 4, &|folder| {
        fs::write(folder.join("have"), [0xff; 85]).expect("garbled");
    });
    assert_refetched("data is gone", 4, &|folder| {
        fs::remove_file(folder.join("data")).expect("removed");
    });
    assert_refetched("data is cut", 4, &|folder| {
        let data = fs::OpenOptions::new().write(true).open(folder.join("data"));
        data.expect("opens").set_len(5).expect("cut");
    });
    assert_refetched("data is other data", 4, &|folder| {
        fs::write(folder.join("data"), vec![7; 9 * MIB]).expect("damaged");
    });
    assert_refetched("a rest of a new have", 2, &|folder| {
        fs::write(folder.join("have.new"), b"half").expect("file");
    });
    assert_refetched("the mode is final", 4, &|folder| {
        let mode = fs::Permissions::from_mode(0o444);
        fs::set_permissions(folder.join("data"), mode).expect("mode");
    });
}

#[test]
fn links_in_the_place_of_files_are_not_followed() {
    let model = two_files();
    let dir = half_filled(&model);
    let folder = model.object_folder(&dir, "d/large");
    let victim = dir.path().join("victim");
    fs::write(&victim, vec![1; 9 * MIB]).expect("file");
    fs::remove_file(folder.join("data")).expect("removed");
    symlink(&victim, folder.join("data")).expect("link");
    assert_eq!(model.publish(&cache(&dir)), 4);
    assert_eq!(fs::read(&victim).expect("there"), vec![1; 9 * MIB]);
}

#[test]
fn a_file_that_a_view_has_is_never_written_to_again() {
    let dir = temporary();
    let first = two_files();
    first.publish(&cache(&dir));
    let folder = first.object_folder(&dir, "d/large");
    fs::write(folder.join("have"), b"garbage").expect("garbled");
    let inode = |path: &Path| fs::metadata(path).expect("there").ino();
    let before = inode(&folder.join("data"));
    let second = model(&[("large", bytes(9 * MIB, 1)), ("other", b"o".to_vec())]);
    let cache = cache(&dir);
    assert_eq!(second.publish(&cache), 4);
    assert_ne!(inode(&folder.join("data")), before);
    first.check_view(&cache);
    second.check_view(&cache);
}

#[test]
fn a_file_that_was_complete_but_not_yet_read_only_becomes_so() {
    let dir = temporary();
    let model = two_files();
    model.publish(&cache(&dir));
    let data = model.object_folder(&dir, "d/large").join("data");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o600)).expect("mode");
    assert_eq!(model.publish(&cache(&dir)), 0);
    assert_eq!(fs::metadata(&data).expect("there").mode() & 0o777, 0o444);
}

#[test]
fn what_was_under_construction_or_deletion_is_cleared_and_strange_things_stay() {
    let dir = temporary();
    let model = two_files();
    model.publish(&cache(&dir));
    let root = dir.path().join("cache");
    fs::create_dir_all(root.join("tmp/view-0/d")).expect("folder");
    fs::write(root.join("tmp/view-0/d/half"), b"x").expect("file");
    symlink("/", root.join("tmp/link")).expect("link");
    fs::create_dir(root.join("objects/lost+found")).expect("folder");
    fs::write(root.join("views/README"), b"x").expect("file");
    let empty = ObjectKey {
        root: Digest::of(b"never made"),
        executable: true,
    };
    fs::create_dir(root.join("objects").join(empty.folder_name())).expect("folder");
    let cache = cache(&dir);
    assert_eq!(fs::read_dir(root.join("tmp")).expect("there").count(), 0);
    assert!(root.join("objects/lost+found").exists());
    assert!(!root.join("objects").join(empty.folder_name()).exists());
    assert_eq!(cache.list().len(), 1);
    model.check_view(&cache);
}

#[test]
fn a_cache_that_others_could_write_to_is_refused() {
    let dir = temporary();
    drop(cache(&dir));
    let objects = dir.path().join("cache/objects");
    fs::set_permissions(&objects, fs::Permissions::from_mode(0o777)).expect("mode");
    let refused = Cache::open(&dir.path().join("cache"), Bytes::mib(1));
    assert!(matches!(refused, Err(OpenError::Unsafe { .. })));
    fs::remove_dir(&objects).expect("removed");
    symlink("/tmp", &objects).expect("link");
    let refused = Cache::open(&dir.path().join("cache"), Bytes::mib(1));
    assert!(matches!(refused, Err(OpenError::Unsafe { .. })));
}

fn sized(mib: usize, seed: u8) -> Model {
    model(&[("f", bytes(mib * MIB, seed))])
}

fn pins(models: &[&Model]) -> BTreeSet<ManifestId> {
    models.iter().map(|m| m.id).collect()
}

#[test]
fn the_model_used_longest_ago_makes_room_and_none_that_is_in_use() {
    let dir = temporary();
    let cache = Cache::open(&dir.path().join("cache"), Bytes::mib(10)).expect("opens");
    let (a, b, c) = (sized(4, 1), sized(4, 2), sized(4, 3));
    a.publish(&cache);
    b.publish(&cache);
    let refused = cache.reserve(c.id, &c.manifest).err();
    let text = refused.expect("nobody said what is in use").to_string();
    assert!(
        text.contains("needs 4 MiB more") && text.contains("2 MiB can be had"),
        "{text}"
    );
    cache.touch(&a.id);
    cache.set_pins(pins(&[&c]));
    c.publish(&cache);
    assert_eq!(
        (cache.view(&b.id), cache.usage().used),
        (None, Bytes::mib(8))
    );
    a.check_view(&cache);
    cache.set_pins(pins(&[&a, &c]));
    assert!(matches!(
        cache.reserve(b.id, &b.manifest).err(),
        Some(ReserveError::InUse { .. })
    ));
    assert!(matches!(cache.evict(&a.id), Err(EvictError::Pinned { .. })));
    a.check_view(&cache);
    cache.set_pins(pins(&[]));
    cache.evict(&a.id).expect("evicted");
    assert_eq!(
        (cache.view(&a.id), cache.usage().used),
        (None, Bytes::mib(4))
    );
    assert_eq!(
        fs::read_dir(dir.path().join("cache/objects"))
            .expect("there")
            .count(),
        1
    );
}

#[test]
fn a_model_that_can_never_fit_is_refused_and_evicts_nothing() {
    let dir = temporary();
    let cache = Cache::open(&dir.path().join("cache"), Bytes::mib(5)).expect("opens");
    cache.set_pins(BTreeSet::new());
    let (small, large) = (sized(4, 1), sized(6, 2));
    small.publish(&cache);
    assert!(matches!(
        cache.reserve(large.id, &large.manifest).err(),
        Some(ReserveError::OverCapacity { .. })
    ));
    small.check_view(&cache);
}

#[test]
fn a_file_of_two_models_stays_until_both_are_gone() {
    let dir = temporary();
    let cache = cache(&dir);
    let shared = bytes(5 * MIB, 9);
    let a = model(&[("w", shared.clone()), ("a", b"a".to_vec())]);
    let b = model(&[("x/w", shared), ("b", b"b".to_vec())]);
    a.publish(&cache);
    assert_eq!(
        b.publish(&cache),
        1,
        "only the file that differs is fetched"
    );
    assert_eq!(cache.usage().used, Bytes((5 * MIB + 2) as u64));
    cache.set_pins(BTreeSet::new());
    cache.evict(&a.id).expect("evicted");
    b.check_view(&cache);
    cache.evict(&b.id).expect("evicted");
    assert_eq!(cache.usage().used, Bytes(0));
}

#[test]
fn two_reservations_do_not_count_on_the_same_space_and_give_back_what_they_did_not_use() {
    let dir = temporary();
    let cache = Cache::open(&dir.path().join("cache"), Bytes::mib(10)).expect("opens");
    cache.set_pins(BTreeSet::new());
    let (a, b) = (sized(6, 1), sized(6, 2));
    let first = cache.reserve(a.id, &a.manifest).expect("fits");
    assert!(cache.reserve(b.id, &b.manifest).is_err());
    drop(first);
    assert_eq!(cache.usage().used, Bytes(0));
    // The rest of a download that nobody goes on with makes room for another.
    let half = cache.reserve(a.id, &a.manifest).expect("fits");
    a.fill(&half, 1);
    assert!(
        cache.reserve(b.id, &b.manifest).is_err(),
        "it is being filled"
    );
    drop(half);
    b.publish(&cache);
    assert_eq!(cache.usage().used, Bytes::mib(6));
}

/// A model of one file that no disk has room for.
fn huge(size_bytes: u64) -> Manifest {
    let chunk_size_bytes = chunk_size_bytes(size_bytes);
    let count = size_bytes.div_ceil(chunk_size_bytes) as usize;
    let chunks = vec![Digest::of(b"chunk"); count];
    let entry = FileEntry {
        path: "huge".into(),
        size_bytes,
        executable: false,
        root: file_digest(&chunks).expect("has chunks"),
        chunk_size_bytes,
        chunks,
    };
    Manifest::new(vec![entry], Description::default()).expect("valid")
}

#[test]
fn a_full_disk_is_refused_with_the_path_and_the_bytes_needed() {
    let dir = temporary();
    let cache = Cache::open(&dir.path().join("cache"), Bytes(u64::MAX)).expect("opens");
    let manifest = huge(4 << 40);
    let error = cache.reserve(manifest.id(), &manifest).err();
    let text = error.expect("no disk has that").to_string();
    assert!(
        text.contains("4 TiB") && text.contains("/cache\""),
        "{text}"
    );
    assert_eq!(cache.usage().used, Bytes(0));
}

/// A file system of 16 MiB, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this process may not mount one.
    fn mount() -> Option<Self> {
        use nix::mount::{MsFlags, mount};
        let dir = temporary();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = Some("size=16m,mode=0700");
        match mount(Some("none"), dir.path(), Some("tmpfs"), flags, options) {
            Ok(()) => Some(Self(dir)),
            Err(errno) => {
                eprintln!("skipped: a small disk cannot be mounted: {errno}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(self.0.path(), flags).expect("was mounted");
    }
}

#[test]
fn a_disk_that_others_fill_meanwhile_is_an_error_that_names_path_and_bytes() {
    let Some(small) = SmallDisk::mount() else {
        return;
    };
    let disk = small.0.path();
    let cache = Cache::open(&disk.join("cache"), Bytes::mib(100)).expect("opens");
    let model = two_files();
    let reservation = cache.reserve(model.id, &model.manifest).expect("fits");
    fs::write(disk.join("others"), vec![1; 8 * MIB]).expect("file");
    let error = reservation.objects()[0].open().expect_err("is full");
    let text = error.to_string();
    assert!(matches!(error, ObjectError::NoSpace { .. }), "{text}");
    assert!(text.contains("9 MiB") && text.contains("objects"), "{text}");
    drop(reservation);
    fs::remove_file(disk.join("others")).expect("removed");
    model.publish(&cache);
}

#[test]
fn a_view_that_somebody_removed_is_noticed() {
    let dir = temporary();
    let cache = cache(&dir);
    let model = two_files();
    model.publish(&cache);
    fs::remove_dir_all(cache.view(&model.id).expect("is there")).expect("removed");
    assert_eq!(cache.view(&model.id), None);
    assert_eq!(model.publish(&cache), 0);
}

#[test]
fn last_use_survives_a_restart() {
    let dir = temporary();
    let (a, b) = (sized(1, 1), sized(1, 2));
    let one = cache(&dir);
    a.publish(&one);
    b.publish(&one);
    let old = fs::File::open(one.view(&b.id).expect("is there")).expect("opens");
    let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    old.set_times(times).expect("set");
    one.touch(&a.id);
    drop(one);
    let used: BTreeMap<ManifestId, SystemTime> = cache(&dir)
        .list()
        .into_iter()
        .map(|v| (v.id, v.last_used))
        .collect();
    assert_eq!(used[&b.id], SystemTime::UNIX_EPOCH);
    assert!(used[&a.id] > used[&b.id]);
}
