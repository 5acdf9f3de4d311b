use std::time::Duration;

use daemon::quic;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::digest::{ChunkPlace, Digest, chunk_digest};
use shared::ids::Role;
use shared::manifest::{Description, FileEntry, Manifest, ManifestId, chunk_size_bytes};
use shared::wire::StreamRequest;

use crate::cluster::{Cluster, hello};

fn small_file(path: &str, contents: &[u8]) -> FileEntry {
    FileEntry {
        path: path.into(),
        size_bytes: contents.len() as u64,
        executable: false,
        root: Digest::of(contents),
        chunk_size_bytes: chunk_size_bytes(contents.len() as u64),
        chunks: vec![chunk_digest(ChunkPlace::Whole, contents)],
    }
}

/// One file of one chunk.
fn model(contents: &[u8]) -> (Manifest, Digest) {
    let file = small_file("model.bin", contents);
    let chunk = file.chunks[0];
    let manifest = Manifest::new(vec![file], sklearn());
    (manifest.expect("valid"), chunk)
}

fn sklearn() -> Description {
    Description {
        flavors: [
            ("python_function".to_owned(), String::new()),
            ("sklearn".to_owned(), "1.7".to_owned()),
        ]
        .into(),
        ..Description::default()
    }
}

async fn put_bytes(cluster: &Cluster, path: &str, bytes: Vec<u8>) -> (StatusCode, Value) {
    let url = cluster.url(path);
    let method = if path.ends_with("manifests") {
        Method::POST
    } else {
        Method::PUT
    };
    let request = cluster
        .client
        .request(method, url)
        .bearer_auth(&cluster.admin);
    let answer = request.body(bytes).send().await.expect("answers");
    let status = answer.status();
    (status, answer.json().await.expect("JSON"))
}

/// Pushes files of one chunk each.
pub(crate) async fn push_files(
    cluster: &Cluster,
    files: Vec<(String, Vec<u8>)>,
    description: Description,
) -> ManifestId {
    let mut entries = Vec::new();
    for (path, contents) in files {
        let file = small_file(&path, &contents);
        let path = format!("/api/stokehold/v1/chunks/{}?whole=true", file.chunks[0]);
        let (status, body) = put_bytes(cluster, &path, contents).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        entries.push(file);
    }
    let manifest = Manifest::new(entries, description).expect("valid");
    let (status, body) = put_bytes(cluster, "/api/stokehold/v1/manifests", manifest.encode()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["id"], json!(manifest.id()));
    manifest.id()
}

pub(crate) async fn push_model(cluster: &Cluster, contents: &[u8]) -> ManifestId {
    let files = vec![("model.bin".to_owned(), contents.to_vec())];
    push_files(cluster, files, sklearn()).await
}

#[tokio::test]
async fn a_model_is_pushed_registered_aliased_and_fetched_by_an_agent() {
    let cluster = Cluster::start().await;
    let contents = b"weights";
    let (manifest, chunk) = model(contents);
    let missing = json!({"digests": [chunk]});
    let path = "/api/stokehold/v1/chunks/missing";
    let before = cluster
        .done(Method::POST, path, Some(missing.clone()))
        .await;
    assert_eq!(before, missing);
    let too_early = put_bytes(&cluster, "/api/stokehold/v1/manifests", manifest.encode()).await;
    assert_eq!(too_early.0, StatusCode::CONFLICT, "{}", too_early.1);

    let id = push_model(&cluster, contents).await;
    let after = cluster.done(Method::POST, path, Some(missing)).await;
    assert_eq!(after, json!({"digests": []}));

    let versions = "/api/stokehold/v1/models/iris/versions";
    for _ in 0..2 {
        let body = json!({"manifest": id});
        let registered = cluster.done(Method::POST, versions, Some(body)).await;
        assert_eq!(
            registered["version"], 1,
            "the same contents are the same version"
        );
    }
    let alias = "/api/stokehold/v1/models/iris/aliases/prod";
    let set = cluster
        .done(Method::PUT, alias, Some(json!({"version": 1})))
        .await;
    assert_eq!(set["aliases"], json!(["prod"]));

    let cluster = cluster.restart().await;
    let listed = cluster
        .done(Method::GET, "/api/stokehold/v1/models/iris", None)
        .await;
    assert_eq!(listed["models"][0]["aliases"], json!(["prod"]));
    assert_eq!(
        listed["models"][0]["description"]["flavors"]["sklearn"],
        "1.7"
    );

    let token = cluster.join_token(json!({"roles": ["agent"]})).await;
    let agent = cluster.joined(&token, Role::Agent, "n1").await;
    let mut session = cluster.session(&agent, hello()).await;
    session.next().await.expect("a welcome");
    let patience = Duration::from_secs(5);
    let requests = [
        (StreamRequest::fetch_manifest(id), manifest.encode()),
        (StreamRequest::fetch_chunk(chunk), contents.to_vec()),
    ];
    for (request, expected) in requests {
        let answered = quic::request(&session.connection, &request, patience).await;
        let (reply, mut stream) = answered.expect("is there");
        let bytes = stream.read_to_end(1 << 20).await.expect("reads");
        assert_eq!(reply.size_bytes, Some(expected.len() as u64));
        assert_eq!(bytes, expected);
    }

    let delete = "/api/stokehold/v1/models/iris?version=1";
    let deleted = cluster.done(Method::DELETE, delete, None).await;
    let freed = deleted["freed_bytes"].as_u64().expect("a number");
    assert!(freed >= contents.len() as u64, "{deleted}");
    let (status, _) = cluster
        .call(&cluster.admin, Method::DELETE, delete, None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let id = push_model(&cluster, b"other weights").await;
    let body = json!({"manifest": id});
    let next = cluster.done(Method::POST, versions, Some(body)).await;
    assert_eq!(
        next["version"], 2,
        "a version's number is not given out again"
    );
}

#[tokio::test]
async fn bytes_that_are_not_what_they_are_called_are_refused() {
    let cluster = Cluster::start().await;
    let (_, chunk) = model(b"weights");
    let of = |query: &str| format!("/api/stokehold/v1/chunks/{chunk}{query}");
    for (path, bytes) in [
        (of("?whole=true"), b"other".to_vec()),
        (of("?offset=4194304"), b"weights".to_vec()),
        (of("?offset=7"), b"weights".to_vec()),
        (of("?whole=true&offset=0"), b"weights".to_vec()),
        (of(""), b"weights".to_vec()),
        (
            "/api/stokehold/v1/chunks/xyz?whole=true".to_owned(),
            b"weights".to_vec(),
        ),
        ("/api/stokehold/v1/manifests".to_owned(), b"{}".to_vec()),
    ] {
        let (status, body) = put_bytes(&cluster, &path, bytes).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}");
        assert_eq!(body["error_code"], "INVALID_PARAMETER_VALUE");
    }
    let (status, body) = put_bytes(&cluster, &of("?whole=true"), vec![0; (32 << 20) + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
    let unknown = json!({"manifest": ManifestId(Digest::of(b"none"))});
    let path = "/api/stokehold/v1/models/iris/versions";
    let (status, body) = cluster
        .call(&cluster.admin, Method::POST, path, Some(unknown.clone()))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    let id = push_model(&cluster, b"weights").await;
    let image = json!({"reference": "example:1", "manifest": id});
    let (status, body) = cluster
        .call(
            &cluster.admin,
            Method::POST,
            "/api/stokehold/v1/images",
            Some(image),
        )
        .await;
    assert_eq!(
        status,
        StatusCode::BAD_REQUEST,
        "a model is no image: {body}"
    );
}
