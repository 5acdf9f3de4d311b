//! A real folder under the store, and a memory behind the same interface.

use std::fs;
use std::time::SystemTime;

use object_store::memory::InMemory;
use shared::manifest::FileEntry;

use super::*;
use crate::manifest_of;

/// A model of a large and a small file, and its bytes by path.
fn model(dir: &FilePath, seed: u8) -> Manifest {
    fs::create_dir_all(dir).expect("folder");
    let mut large = vec![0; 9 << 20];
    let source = blake3::Hasher::new_keyed(&[seed; 32]);
    source.finalize_xof().fill(&mut large);
    fs::write(dir.join("large"), large).expect("file");
    fs::write(dir.join("small"), [seed]).expect("file");
    fs::write(dir.join("same"), b"in every model").expect("file");
    fs::write(dir.join("empty"), b"").expect("file");
    manifest_of(dir, &|_| {}).expect("is a model")
}

fn chunk_bytes(dir: &FilePath, file: &FileEntry, index: usize) -> (Digest, ChunkPlace, Bytes) {
    let chunk = file.chunk_refs().nth(index).expect("has that chunk");
    let bytes = fs::read(dir.join(&file.path)).expect("there");
    let from = chunk.offset_bytes as usize;
    let bytes = bytes[from..from + chunk.len_bytes as usize].to_vec();
    (chunk.digest, chunk.place, Bytes::from(bytes))
}

async fn push(store: &ChunkStore, dir: &FilePath, manifest: &Manifest) -> ManifestId {
    for file in &manifest.files {
        for index in 0..file.chunks.len() {
            let (digest, place, bytes) = chunk_bytes(dir, file, index);
            store.put_chunk(digest, place, bytes).await.expect("stored");
        }
    }
    let bytes = Bytes::from(manifest.encode());
    store.put_manifest(bytes).await.expect("stored")
}

fn no_grace(dir: &FilePath) -> ChunkStore {
    let store = ChunkStore::local(dir).expect("opens");
    store.with_grace(Duration::ZERO)
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

#[tokio::test]
async fn what_was_pushed_reads_back_and_survives_a_new_store_over_the_folder() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::local(data.path()).expect("opens");
    let chunks: Vec<Digest> = manifest.chunks().into_keys().collect();
    assert_eq!(chunks.len(), 5);
    assert_eq!(store.missing_chunks(&chunks).await.expect("asked"), chunks);
    let id = push(&store, dir.path(), &manifest).await;
    let again = ChunkStore::local(data.path()).expect("opens");
    assert!(
        again
            .missing_chunks(&chunks)
            .await
            .expect("asked")
            .is_empty()
    );
    let bytes = again.get_manifest(id).await.expect("there");
    assert_eq!(Manifest::decode(&bytes).expect("valid"), manifest);
    let small = again.read_file(&manifest, "small").await.expect("reads");
    assert_eq!(small, [1]);
    let large = again.read_file(&manifest, "large").await.expect("reads");
    assert_eq!(large, fs::read(dir.path().join("large")).expect("there"));
    assert!(
        again
            .read_file(&manifest, "empty")
            .await
            .expect("reads")
            .is_empty()
    );
    assert!(matches!(
        again.read_file(&manifest, "none").await,
        Err(ReadFileError::NoSuchFile { .. })
    ));
}

#[tokio::test]
async fn a_chunk_with_wrong_bytes_or_at_another_place_is_refused() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::local(data.path()).expect("opens");
    let file = &manifest.files[1];
    let (digest, place, bytes) = chunk_bytes(dir.path(), file, 1);
    let moved = store
        .put_chunk(digest, ChunkPlace::Whole, bytes.clone())
        .await;
    assert!(matches!(moved, Err(PutChunkError::WrongContent { .. })));
    let mut wrong = bytes.to_vec();
    wrong[0] ^= 1;
    let wrong = store.put_chunk(digest, place, wrong.into()).await;
    assert!(matches!(wrong, Err(PutChunkError::WrongContent { .. })));
    let long = Bytes::from(vec![0; MAX_CHUNK_BYTES as usize + 1]);
    let long = store.put_chunk(digest, place, long).await;
    assert!(matches!(long, Err(PutChunkError::TooLong { .. })));
    let odd = ChunkPlace::At { offset_bytes: 7 };
    let odd = store.put_chunk(digest, odd, Bytes::from_static(b"x")).await;
    let text = odd.expect_err("refused").to_string();
    assert!(text.contains("no chunk has 1 bytes at offset 7"), "{text}");
    assert!(!store.has_chunk(digest).await.expect("asked"));
    assert!(matches!(
        store.get_chunk(digest).await,
        Err(GetError::NotFound { .. })
    ));
}

#[tokio::test]
async fn a_manifest_is_refused_until_all_its_chunks_are_there() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::local(data.path()).expect("opens");
    let bytes = Bytes::from(manifest.encode());
    let refused = store.put_manifest(bytes).await;
    assert!(matches!(
        refused,
        Err(PutManifestError::MissingChunks { count: 5, .. })
    ));
    let garbled = store.put_manifest(Bytes::from_static(b"{}")).await;
    assert!(matches!(garbled, Err(PutManifestError::Invalid(_))));
    let id = push(&store, dir.path(), &manifest).await;
    assert_eq!(id, manifest.id());
}

#[tokio::test]
async fn a_file_whose_chunk_rotted_is_named_and_heals_by_pushing_again() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::local(data.path()).expect("opens");
    push(&store, dir.path(), &manifest).await;
    let digest = manifest.files[3].chunks[0].to_hex();
    let path = data.path().join("chunks").join(&digest[..2]).join(&digest);
    fs::write(path, [9]).expect("damaged");
    let refused = store.read_file(&manifest, "small").await;
    assert!(matches!(refused, Err(ReadFileError::Corrupt { path, .. }) if path == "small"));
    push(&store, dir.path(), &manifest).await;
    assert!(store.read_file(&manifest, "small").await.is_ok());
}

#[tokio::test]
async fn collecting_keeps_live_models_and_shared_chunks_and_deletes_the_rest() {
    let (dir, data) = (temporary(), temporary());
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let (one, two) = (model(&a, 1), model(&b, 2));
    let store = no_grace(data.path());
    let kept = push(&store, &a, &one).await;
    let dropped = push(&store, &b, &two).await;
    let collected = store.collect(&[kept]).await.expect("collects");
    assert_eq!(
        collected,
        Collected {
            deleted_manifests: 1,
            deleted_chunks: 4,
            deleted_bytes: (9 << 20) + 1 + two.encode().len() as u64,
            kept_chunks: 5,
            deleted_leftovers: 0,
        }
    );
    assert!(store.get_manifest(dropped).await.is_err());
    for file in ["large", "small", "same", "empty"] {
        assert!(store.read_file(&one, file).await.is_ok(), "{file} is gone");
    }
    let again = store.collect(&[kept]).await.expect("collects");
    assert_eq!((again.deleted_chunks, again.deleted_manifests), (0, 0));
}

#[tokio::test]
async fn a_push_under_way_loses_nothing_to_a_collection() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::local(data.path()).expect("opens");
    push(&store, dir.path(), &manifest).await;
    let collected = store.collect(&[]).await.expect("collects");
    assert_eq!((collected.deleted_manifests, collected.kept_chunks), (0, 5));
}

#[tokio::test]
async fn what_was_deleted_by_name_goes_at_once_but_not_what_another_push_counts_on() {
    let (folder, first, second) = (temporary(), temporary(), temporary());
    let store = ChunkStore::local(folder.path()).expect("store");
    let gone = model(first.path(), 1);
    let kept = model(second.path(), 2);
    let gone_id = push(&store, first.path(), &gone).await;
    let kept_id = push(&store, second.path(), &kept).await;
    let collected = store.collect(&[kept_id]).await.expect("collected");
    assert_eq!(
        collected.deleted_chunks, 0,
        "young objects are somebody's push"
    );

    // Another push was told of one of its chunks meanwhile.
    let large = gone
        .files
        .iter()
        .find(|file| file.path == "large")
        .expect("is there");
    let counted_on = large.chunks[0];
    assert!(store.has_chunk(counted_on).await.expect("looked up"));
    let collected = store
        .collect_deleted(&[kept_id], gone_id)
        .await
        .expect("collected");
    let own: std::collections::BTreeSet<_> = gone.chunks().into_keys().collect();
    let shared: std::collections::BTreeSet<_> = kept.chunks().into_keys().collect();
    let expected = own
        .difference(&shared)
        .filter(|chunk| **chunk != counted_on)
        .count();
    assert!(expected > 0);
    assert_eq!(collected.deleted_chunks, expected);
    assert!(store.has_chunk(counted_on).await.expect("looked up"));
    assert!(store.get_manifest(gone_id).await.is_err());
    for chunk in shared {
        assert!(store.has_chunk(chunk).await.expect("looked up"));
    }
}

#[tokio::test]
async fn a_chunk_that_was_promised_stays_however_old_it_is() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::local(data.path()).expect("opens");
    push(&store, dir.path(), &manifest).await;
    let two_days_ago = SystemTime::now() - Duration::from_secs(48 * 3600);
    for path in walk(data.path()) {
        let file = fs::File::options().write(true).open(path).expect("opens");
        file.set_modified(two_days_ago).expect("set");
    }
    // Another store over the folder has made no promises.
    let fresh = ChunkStore::local(data.path()).expect("opens");
    let promised = manifest.files[3].chunks[0];
    assert!(fresh.has_chunk(promised).await.expect("asked"));
    let collected = fresh.collect(&[]).await.expect("collects");
    assert_eq!((collected.deleted_chunks, collected.kept_chunks), (4, 1));
    assert!(fresh.has_chunk(promised).await.expect("asked"));
}

fn walk(dir: &FilePath) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("there").flatten() {
        if entry.path().is_dir() {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

#[tokio::test]
async fn a_live_manifest_that_cannot_be_read_stops_the_collection() {
    let (dir, data) = (temporary(), temporary());
    let manifest = model(dir.path(), 1);
    let store = no_grace(data.path());
    let id = push(&store, dir.path(), &manifest).await;
    let path = data.path().join("manifests").join(format!("{id}.json"));
    fs::write(path, b"rotten").expect("damaged");
    assert!(matches!(
        store.collect(&[id]).await,
        Err(CollectError::Get { .. })
    ));
    let chunks: Vec<Digest> = manifest.chunks().into_keys().collect();
    assert!(
        store
            .missing_chunks(&chunks)
            .await
            .expect("asked")
            .is_empty()
    );
}

#[tokio::test]
async fn halves_of_writes_that_a_crash_left_are_removed() {
    let data = temporary();
    let store = no_grace(data.path());
    let digest = Digest::of(b"x");
    store
        .put_chunk(digest, ChunkPlace::Whole, Bytes::from_static(b"x"))
        .await
        .expect("stored");
    let folder = data.path().join("chunks").join(&digest.to_hex()[..2]);
    fs::write(folder.join(format!("{digest}#1")), b"half").expect("file");
    let collected = store.collect(&[]).await.expect("collects");
    assert_eq!(
        (collected.deleted_leftovers, collected.deleted_chunks),
        (1, 1)
    );
}

#[tokio::test]
async fn any_object_store_will_do() {
    let dir = temporary();
    let manifest = model(dir.path(), 1);
    let store = ChunkStore::new(Arc::new(InMemory::new()), "a/prefix");
    let id = push(&store, dir.path(), &manifest).await;
    assert!(store.get_manifest(id).await.is_ok());
    let store = store.with_grace(Duration::ZERO);
    let collected = store.collect(&[]).await.expect("collects");
    assert_eq!(
        (collected.deleted_manifests, collected.deleted_chunks),
        (1, 5)
    );
}
