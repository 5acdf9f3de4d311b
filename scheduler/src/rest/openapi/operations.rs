//! Every route, in the router's order.

use serde_json::json;
use shared::api::autoscaler::{Explained, Pools, Series};
use shared::api::certificates::{
    CaBundle, CaRotationFinished, CaStatus, FinishCaRotation, RenewReply, RenewRequest,
};
use shared::api::events::{EventLine, EventList};
use shared::api::images::PullImage;
use shared::api::serving::{ConfigInput, CreateEndpoint, Detailed, EndpointList, Logs, TagOutput};
use shared::api::{
    CreateNodeToken, CreateToken, Deleted, EndpointDescription, ImageInfo, ImageList, JoinReply,
    JoinRequest, LogLine, ManifestStored, MissingChunks, ModelList, ModelVersionInfo,
    NodeDescription, NodeList, NodeTokenCreated, NodeTokenList, RegisterImage,
    RegisterModelVersion, SetAlias, TokenCreated, TokenList, Version, WhoAmI,
};

use super::Access::{Admin, Everybody, Manage, Query};
use super::{Document, Operation, content};

const SERVING: &str = "/api/2.0/serving-endpoints";
const OURS: &str = "/api/stokehold/v1";

/// The contract of Databricks Model Serving.
pub(super) fn serving(doc: &mut Document) {
    let at = |rest: &str| format!("{SERVING}{rest}");
    for path in [at(""), at("/")] {
        let list = Operation::new("get", path.clone(), Query).says("Lists endpoints.");
        let list = list.answers::<EndpointList>(doc);
        doc.add(&list);
        let create = Operation::new("post", path, Manage)
            .says("Makes an endpoint; answers at once, in state IN_PROGRESS.")
            .takes::<CreateEndpoint>(doc)
            .refuses(&[404])
            .answers::<Detailed>(doc);
        doc.add(&create);
    }
    let get = Operation::new("get", at("/{name}"), Query)
        .says("An endpoint's state, config and pending config.")
        .answers::<Detailed>(doc);
    doc.add(&get);
    let delete = Operation::new("delete", at("/{name}"), Manage).says("Deletes an endpoint.");
    doc.add(&delete);
    let update = Operation::new("put", at("/{name}/config"), Manage)
        .says("Rolls out a new config version.")
        .takes::<ConfigInput>(doc)
        .refuses(&[409])
        .answers::<Detailed>(doc);
    doc.add(&update);
    let tag = doc.outputs.subschema_for::<TagOutput>().to_value();
    let tags = json!({
        "type": "object",
        "properties": {"tags": {"type": "array", "items": tag}},
        "required": ["tags"],
    });
    let patch = Operation::new("patch", at("/{name}/tags"), Manage)
        .says("The endpoint's tags; a change of them is answered 501.")
        .refuses(&[413, 501])
        .answers_content(content("application/json", tags));
    doc.add(&patch);
    let logs = Operation::new("get", at("/{name}/served-models/{entity}/logs"), Manage)
        .says("The last lines of a served entity's replicas.")
        .answers::<Logs>(doc);
    doc.add(&logs);
    let me = json!({
        "type": "object",
        "properties": {"id": {"type": "string"}, "userName": {"type": "string"}},
        "required": ["id", "userName"],
        "additionalProperties": true,
    });
    let me = Operation::new("get", "/api/2.0/preview/scim/v2/Me", Query)
        .says("Who the token stands for, in SCIM's words.")
        .answers_content(content("application/json", me));
    doc.add(&me);
    doc.add(&Operation::new("post", at("/pt"), Query).not_implemented());
    let permissions = "/api/2.0/permissions/serving-endpoints/{id}";
    let refused = [
        at("/{name}/served-models/{entity}/build-logs"),
        at("/pt/{name}/config"),
        permissions.to_owned(),
        format!("{permissions}/permissionLevels"),
        at("/{name}/rate-limits"),
        at("/{name}/ai-gateway"),
        at("/{name}/notifications"),
        at("/{name}/telemetry-config"),
        at("/{name}/metrics"),
        at("/{name}/openapi"),
    ];
    for path in refused {
        for method in ["delete", "get", "patch", "post", "put"] {
            doc.add(&Operation::new(method, path.clone(), Query).not_implemented());
        }
    }
}

/// What is ours alone.
pub(super) fn stokehold(doc: &mut Document) {
    let at = |rest: &str| format!("{OURS}{rest}");
    let operations = [
        Operation::new("post", at("/join"), Everybody)
            .says("A node's certificate for a join token's secret and a certificate request.")
            .takes::<JoinRequest>(doc)
            .refuses(&[401, 403])
            .answers::<JoinReply>(doc),
        Operation::new("post", at("/renew"), Everybody)
            .says("A node's next certificate, for whoever holds its key.")
            .takes::<RenewRequest>(doc)
            .refuses(&[403, 429])
            .answers::<RenewReply>(doc),
        Operation::new("get", at("/ca"), Admin)
            .says("The certificate authority, its rotation, and the nodes' certificates.")
            .answers::<CaStatus>(doc),
        Operation::new("get", at("/ca/bundle"), Query)
            .says("Every authority that is trusted now.")
            .answers::<CaBundle>(doc),
        Operation::new("post", at("/ca/rotate"), Admin)
            .says("Makes a new authority, which takes the place of the old one step by step.")
            .refuses(&[409])
            .answers::<CaStatus>(doc),
        Operation::new("post", at("/ca/finish"), Admin)
            .says("Drops the old authority.")
            .takes::<FinishCaRotation>(doc)
            .refuses(&[409])
            .answers::<CaRotationFinished>(doc),
        Operation::new("get", at("/openapi.json"), Everybody).says("This document."),
        Operation::new("get", at("/version"), Query)
            .says("The scheduler's version, its cluster and its epoch.")
            .answers::<Version>(doc),
        Operation::new("get", at("/whoami"), Query)
            .says("Whose token it is.")
            .answers::<WhoAmI>(doc),
        Operation::new("get", at("/events"), Query)
            .says("What happened, oldest first; with follow=true JSON lines that go on.")
            .query(
                "endpoint",
                "string",
                "Those of this endpoint, also after it was deleted.",
            )
            .query("node", "string", "Those of this node.")
            .query("warnings", "boolean", "Warnings only.")
            .query("since", "integer", "The next ones after this number.")
            .query("within_s", "integer", "Those of the last so many seconds.")
            .query(
                "limit",
                "integer",
                "At most so many: 200, and never more than 1000.",
            )
            .query("follow", "boolean", "Go on with what happens from now on.")
            .refuses(&[404])
            .answers::<EventList>(doc)
            .or_lines::<EventLine>(doc),
        Operation::new("get", at("/pools"), Query)
            .says("How many nodes should hold each runtime's image ahead of need, and why.")
            .answers::<Pools>(doc),
        Operation::new("get", at("/endpoints/{name}"), Query)
            .says("An endpoint with its replicas, the last decisions and the last events.")
            .answers::<EndpointDescription>(doc),
        Operation::new("get", at("/endpoints/{name}/explain"), Query)
            .says("How the autoscaler stands, and its last decisions with their reasons.")
            .query("entity", "string", "That of this served entity.")
            .answers::<Explained>(doc),
        Operation::new("get", at("/endpoints/{name}/series"), Query)
            .says("What was measured of a served entity lately, stretch by stretch.")
            .query(
                "entity",
                "string",
                "Which; not needed where the endpoint has one.",
            )
            .query(
                "resolution",
                "string",
                "1s for 10 min, 10s for 2 h or 1m for 24 h; 10s when left out.",
            )
            .query(
                "since",
                "integer",
                "What ended after this time, Unix milliseconds.",
            )
            .answers::<Series>(doc),
        Operation::new("get", at("/endpoints/{name}/logs"), Manage)
            .says("What an endpoint's replicas wrote, as JSON lines.")
            .query("entity", "string", "Those of this served entity.")
            .query("replica", "string", "Those of this replica.")
            .query(
                "tail_bytes",
                "integer",
                "How much of each log's end: 262144.",
            )
            .query(
                "follow",
                "boolean",
                "Go on with what is written from now on.",
            )
            .answers_content(json!({}))
            .or_lines::<LogLine>(doc),
        Operation::new("post", at("/chunks/missing"), Manage)
            .says("Which chunks are not stored yet.")
            .takes::<MissingChunks>(doc)
            .answers::<MissingChunks>(doc),
        Operation::new("put", at("/chunks/{digest}"), Manage)
            .says("Stores a chunk; say either offset or whole.")
            .query("offset", "integer", "Where in its file the chunk begins.")
            .query("whole", "boolean", "It is a whole file.")
            .takes_bytes(),
        Operation::new("post", at("/manifests"), Manage)
            .says("Stores a canonical manifest; all its chunks must be there.")
            .takes_bytes()
            .refuses(&[409])
            .answers::<ManifestStored>(doc),
        Operation::new("get", at("/models"), Query)
            .says("Lists models, version by version.")
            .answers::<ModelList>(doc),
        Operation::new("get", at("/models/{name}"), Query)
            .says("The versions of one model.")
            .answers::<ModelList>(doc),
        Operation::new("delete", at("/models/{name}"), Manage)
            .says("Deletes a version, and frees its chunks.")
            .query("version", "integer", "Which; needed.")
            .refuses(&[409])
            .answers::<Deleted>(doc),
        Operation::new("post", at("/models/{name}/versions"), Manage)
            .says("Registers a manifest as the next version.")
            .takes::<RegisterModelVersion>(doc)
            .answers::<ModelVersionInfo>(doc),
        Operation::new("put", at("/models/{name}/aliases/{alias}"), Manage)
            .says("Lets an alias stand for a version.")
            .takes::<SetAlias>(doc)
            .answers::<ModelVersionInfo>(doc),
        Operation::new("get", at("/images"), Query)
            .says("Lists images.")
            .answers::<ImageList>(doc),
        Operation::new("post", at("/images"), Manage)
            .says("Registers an OCI layout under a reference.")
            .takes::<RegisterImage>(doc)
            .refuses(&[404])
            .answers::<ImageInfo>(doc),
        Operation::new("post", at("/images/pull"), Manage)
            .says("Asks a registry now what a reference means.")
            .takes::<PullImage>(doc)
            .refuses(&[404])
            .answers::<ImageInfo>(doc),
        Operation::new("delete", at("/images"), Manage)
            .says("Deletes an image, and frees its chunks.")
            .query("reference", "string", "Which; needed.")
            .refuses(&[404, 409])
            .answers::<Deleted>(doc),
        Operation::new("get", at("/nodes"), Query)
            .says("Lists nodes.")
            .answers::<NodeList>(doc),
        Operation::new("get", at("/nodes/{name}"), Query)
            .says("A node with its replicas and its last events.")
            .answers::<NodeDescription>(doc),
        Operation::new("delete", at("/nodes/{name}"), Admin)
            .says("Forgets a revoked node whose certificates have expired.")
            .refuses(&[409]),
        Operation::new("post", at("/nodes/{name}/revoke"), Admin)
            .says("Refuses a node from now on, for good."),
        Operation::new("get", at("/node-tokens"), Admin)
            .says("Lists join tokens.")
            .answers::<NodeTokenList>(doc),
        Operation::new("post", at("/node-tokens"), Admin)
            .says("Makes a join token; its text is shown once.")
            .takes::<CreateNodeToken>(doc)
            .refuses(&[404, 409])
            .answers::<NodeTokenCreated>(doc),
        Operation::new("delete", at("/node-tokens/{id}"), Admin).says("Deletes a join token."),
        Operation::new("get", at("/tokens"), Admin)
            .says("Lists bearer tokens.")
            .answers::<TokenList>(doc),
        Operation::new("post", at("/tokens"), Admin)
            .says("Makes a bearer token; its text is shown once.")
            .takes::<CreateToken>(doc)
            .answers::<TokenCreated>(doc),
        Operation::new("delete", at("/tokens/{id}"), Admin).says("Deletes a bearer token."),
    ];
    for operation in &operations {
        doc.add(operation);
    }
}

/// Beside the two groups, and the gateway's.
pub(super) fn others(doc: &mut Document) {
    let operations = [
        Operation::new("get", "/healthz", Everybody).says("Whether the process answers."),
        Operation::new("get", "/.well-known/databricks-config", Everybody)
            .says("What some clients ask for before every call."),
    ];
    for operation in &operations {
        doc.add(operation);
    }
    for path in [
        "/serving-endpoints/{name}/invocations",
        "/serving-endpoints/{name}/served-models/{entity}/invocations",
    ] {
        let invoke = Operation::new("post", path, Query)
            .says("Gateway only: a request to a model. Body and answer are the runtime's.")
            .takes_content(content("application/json", json!({})))
            .refuses(&[415, 429, 502, 504])
            .answers_content(json!({
                "application/json": {"schema": {}},
                "text/event-stream": {"schema": {"type": "string"}},
            }));
        doc.add(&invoke);
    }
}
