//! Pushing and registering models: chunks, manifests, versions, aliases.
//!
//! A push asks which chunks are missing, sends those, then the manifest (which is taken only when
//! all its chunks are there), then registers it. Each step may be repeated.

use axum::extract::{Request, State};
use model::store::{MAX_CHUNK_BYTES, PutChunkError, PutManifestError};
use scheduler_core::events::recorded as told;
use scheduler_core::registry::ModelContents;
use scheduler_core::{ApiError, Effects};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::api::{
    Deleted, ManifestStored, MissingChunks, ModelList, ModelVersionInfo, RegisterModelVersion,
    SetAlias,
};
use shared::digest::{ChunkPlace, Digest};
use shared::ids::{AliasName, ModelName};
use shared::manifest::MAX_MANIFEST_BYTES;
use tokio::runtime::Handle;

use super::Api;
use super::auth::{Caller, Manage, Query};
use super::body::{self, Json, Named, Params};
use super::error::{Refusal, internal};

const MAX_DIGESTS: usize = 4096;

pub(super) async fn missing_chunks(
    _: Caller<Manage>,
    State(api): State<Api>,
    Json(asked): Json<MissingChunks>,
) -> Result<Json<MissingChunks>, Refusal> {
    if asked.digests.len() > MAX_DIGESTS {
        let problem = format!("digests: at most {MAX_DIGESTS} at once");
        return Err(Refusal(ApiError::invalid(problem)));
    }
    let missing = api.chunks.store.missing_chunks(&asked.digests).await;
    let digests = missing.map_err(|e| internal(&e))?;
    Ok(Json(MissingChunks { digests }))
}

/// Exactly one of the two says where in its file the chunk lies, on which its digest depends.
#[derive(Deserialize)]
pub(super) struct PlaceParams {
    offset: Option<u64>,
    whole: Option<bool>,
}

pub(super) async fn put_chunk(
    _: Caller<Manage>,
    State(api): State<Api>,
    Named(digest): Named<Digest>,
    Params(place): Params<PlaceParams>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let place = match (place.offset, place.whole) {
        (Some(offset_bytes), None | Some(false)) => ChunkPlace::At { offset_bytes },
        (None, Some(true)) => ChunkPlace::Whole,
        _ => {
            return Err(Refusal(ApiError::invalid(
                "query: say either offset=N or whole=true",
            )));
        }
    };
    let _place = api
        .uploads
        .acquire()
        .await
        .map_err(|_| crate::control::Stopping)?;
    let limit = usize::try_from(MAX_CHUNK_BYTES).unwrap_or(usize::MAX);
    let bytes = body::read(request.into_body(), limit).await?;
    match api.chunks.store.put_chunk(digest, place, bytes).await {
        Ok(()) => Ok(Json(json!({}))),
        Err(error @ PutChunkError::Backend(_)) => Err(internal(&error)),
        Err(error @ PutChunkError::TooLong { .. }) => {
            Err(Refusal(ApiError::too_large(error.to_string())))
        }
        Err(error @ (PutChunkError::WrongContent { .. } | PutChunkError::Place { .. })) => {
            Err(Refusal(ApiError::invalid(error.to_string())))
        }
    }
}

pub(super) async fn put_manifest(
    _: Caller<Manage>,
    State(api): State<Api>,
    request: Request,
) -> Result<Json<ManifestStored>, Refusal> {
    let bytes = body::read(request.into_body(), MAX_MANIFEST_BYTES).await?;
    // It looks at every chunk of the model, thousands at times: on a thread for blocking work.
    let (store, runtime) = (api.chunks.store.clone(), Handle::current());
    let put = tokio::task::spawn_blocking(move || runtime.block_on(store.put_manifest(bytes)));
    match put.await.map_err(|e| internal(&e))? {
        Ok(id) => Ok(Json(ManifestStored { id })),
        Err(PutManifestError::Invalid(problem)) => {
            Err(Refusal(ApiError::invalid(format!("manifest: {problem}"))))
        }
        Err(error @ PutManifestError::MissingChunks { .. }) => {
            Err(Refusal(ApiError::conflict(error.to_string())))
        }
        Err(error @ PutManifestError::Backend(_)) => Err(internal(&error)),
    }
}

pub(super) async fn list(
    _: Caller<Query>,
    State(api): State<Api>,
) -> Result<Json<ModelList>, Refusal> {
    let models = api.control.read(|core| {
        let registry = &core.registry;
        let models = registry.models();
        models.map(|version| registry.model_info(version)).collect()
    });
    let models = models.await?;
    Ok(Json(ModelList { models }))
}

pub(super) async fn versions(
    _: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<ModelName>,
) -> Result<Json<ModelList>, Refusal> {
    let asked = name.clone();
    let models: Vec<ModelVersionInfo> = api
        .control
        .read(move |core| {
            let registry = &core.registry;
            let versions = registry.versions_of(&asked);
            versions
                .map(|version| registry.model_info(version))
                .collect()
        })
        .await?;
    if models.is_empty() {
        let problem = format!("model {name} does not exist");
        return Err(Refusal(ApiError::not_found(problem)));
    }
    Ok(Json(ModelList { models }))
}

pub(super) async fn register(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Named(name): Named<ModelName>,
    Json(input): Json<RegisterModelVersion>,
) -> Result<Json<ModelVersionInfo>, Refusal> {
    let _kept = api.chunks.keep().await;
    let manifest = api.chunks.manifest(input.manifest).await?;
    let contents = ModelContents::of(input.manifest, &manifest);
    let by = caller.token.name;
    let registered = api.control.decide(move |core, ctx| {
        let registry = &mut core.registry;
        match registry.register_model_version(&name, contents, ctx.unix_ms) {
            Ok((version, writes)) => {
                let found = registry.model(&name, version);
                let info = found.map(|found| registry.model_info(found));
                // Nothing to write: the same contents again.
                if !writes.is_empty() {
                    core.tell(told::pushed(&name, version, &by), ctx.unix_ms);
                }
                (info.ok_or_else(vanished), writing(writes))
            }
            Err(error) => (Err(error), Effects::default()),
        }
    });
    Ok(Json(registered.await??))
}

pub(super) async fn set_alias(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Named((name, alias)): Named<(ModelName, AliasName)>,
    Json(input): Json<SetAlias>,
) -> Result<Json<ModelVersionInfo>, Refusal> {
    let by = caller.token.name;
    let set = api.control.decide(move |core, ctx| {
        let registry = &mut core.registry;
        match registry.set_alias(&name, &alias, input.version) {
            Ok(writes) => {
                let found = registry.model(&name, input.version);
                let info = found.map(|found| registry.model_info(found));
                let aliased = told::aliased(&name, input.version, alias.as_str(), &by);
                core.tell(aliased, ctx.unix_ms);
                (info.ok_or_else(vanished), writing(writes))
            }
            Err(error) => (Err(error), Effects::default()),
        }
    });
    Ok(Json(set.await??))
}

#[derive(Deserialize)]
pub(super) struct VersionParam {
    version: Option<u32>,
}

/// Frees what nothing else needs.
pub(super) async fn delete_version(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Named(name): Named<ModelName>,
    Params(params): Params<VersionParam>,
) -> Result<Json<Deleted>, Refusal> {
    let version = params.version.ok_or_else(|| {
        ApiError::invalid("query: say which version to delete, such as version=1")
    })?;
    let by = caller.token.name;
    let deleted = api.control.decide(move |core, ctx| {
        let users = core.models_in_use();
        let in_use = |name: &ModelName, version| users.get(&(name.clone(), version)).cloned();
        let manifest = core
            .registry
            .model(&name, version)
            .map(|found| found.manifest);
        match core.registry.delete_model_version(&name, version, &in_use) {
            Ok(writes) => {
                core.tell(told::model_deleted(&name, version, &by), ctx.unix_ms);
                (Ok(manifest), writing(writes))
            }
            Err(error) => (Err(error), Effects::default()),
        }
    });
    let manifest = deleted.await??;
    let collected = api.chunks.collect(&api.control, manifest).await?;
    Ok(Json(Deleted {
        freed_bytes: collected.deleted_bytes,
    }))
}

fn writing(writes: Vec<scheduler_core::store_op::Op>) -> Effects {
    Effects {
        writes,
        ..Effects::default()
    }
}

fn vanished() -> ApiError {
    ApiError::internal("the version that was just written is not there")
}
