use std::collections::BTreeMap;

use proptest::prelude::*;
use shared::digest::{Digest, OciDigest};
use shared::ids::{AliasName, ImageRef, ModelName, NodeName, Role, TokenId};
use shared::manifest::{Description, Kind, ManifestId, Signature};
use shared::plan::{ImageOrigin, OciBlob, OciLayer, PlannedImage};
use shared::spec::TokenRole;

use super::*;
use crate::store_op::Op;

const T0: u64 = 1_800_000_000;

fn apply(entries: &mut Entries, ops: Vec<Op>) {
    for op in ops {
        match op {
            Op::Put { key, value } => drop(entries.insert(key, value)),
            Op::Delete { key } => drop(entries.remove(&key)),
        }
    }
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).expect("valid")
}

fn node(text: &str) -> NodeName {
    NodeName::parse(text).expect("valid")
}

fn contents(of: &str) -> ModelContents {
    ModelContents {
        manifest: ManifestId(Digest::of(of.as_bytes())),
        size_bytes: 10,
        description: Description::default(),
    }
}

fn secret(bits: u64) -> Secret {
    Secret {
        id: TokenId::from_bits(bits),
        bytes: [bits as u8; 32],
    }
}

fn image(layers: usize) -> PlannedImage {
    let digest = |byte: usize| OciDigest::parse(&format!("sha256:{byte:064x}")).expect("valid");
    let blob = |byte: usize, media_type: &str| OciBlob {
        media_type: media_type.into(),
        digest: digest(byte),
        size_bytes: 100,
    };
    PlannedImage {
        reference: ImageRef::parse("stokehold.local/runtime-mlflow:1").expect("valid"),
        origin: ImageOrigin::Layout(ManifestId(Digest::of(b"layout"))),
        manifest: blob(1, "application/vnd.oci.image.manifest.v1+json"),
        config: blob(2, "application/vnd.oci.image.config.v1+json"),
        layers: (0..layers)
            .map(|i| OciLayer {
                blob: blob(10 + i, "application/vnd.oci.image.layer.v1.tar+gzip"),
                diff_id: digest(1000 + i),
            })
            .collect(),
        environment: vec!["PATH=/usr/bin".into()],
    }
}

#[test]
fn a_version_number_is_never_given_out_twice_even_after_a_restart() {
    let mut registry = Registry::default();
    let mut entries = Entries::new();
    let iris = name("iris");
    for (of, expected) in [("a", 1), ("b", 2)] {
        let (version, ops) = registry
            .register_model_version(&iris, contents(of), T0)
            .expect("registers");
        assert_eq!(version, expected);
        apply(&mut entries, ops);
    }
    let ops = registry
        .delete_model_version(&iris, 2, &|_, _| None)
        .expect("unused");
    apply(&mut entries, ops);
    let mut restored = Registry::restore(&entries).expect("restores");
    let (version, _) = restored
        .register_model_version(&iris, contents("c"), T0)
        .expect("registers");
    assert_eq!(version, 3);
}

#[test]
fn pushing_the_newest_contents_again_is_the_same_version_and_writes_nothing() {
    let mut registry = Registry::default();
    let first = registry.register_model_version(&name("iris"), contents("a"), T0);
    assert_eq!(first.expect("registers").0, 1);
    let again = registry.register_model_version(&name("iris"), contents("a"), T0);
    assert_eq!(again, Ok((1, vec![])));
}

#[test]
fn an_alias_goes_with_the_version_that_it_stands_for() {
    let mut registry = Registry::default();
    let mut entries = Entries::new();
    let (iris, prod) = (name("iris"), AliasName::parse("prod").expect("valid"));
    let (_, ops) = registry
        .register_model_version(&iris, contents("a"), T0)
        .expect("registers");
    apply(&mut entries, ops);
    assert_eq!(
        registry
            .set_alias(&iris, &prod, 9)
            .expect_err("no 9")
            .status,
        404
    );
    apply(
        &mut entries,
        registry.set_alias(&iris, &prod, 1).expect("sets"),
    );
    let reference = "iris@prod".parse().expect("valid");
    assert_eq!(registry.resolve(&reference).expect("resolves").version, 1);
    assert_eq!(registry.aliases_of(&iris, 1), [prod]);
    let ops = registry
        .delete_model_version(&iris, 1, &|_, _| None)
        .expect("unused");
    apply(&mut entries, ops);
    assert_eq!(registry.resolve(&reference).expect_err("gone").status, 404);
    assert!(
        entries.keys().all(|key| key.starts_with("modelHead/")),
        "{entries:?}"
    );
}

#[test]
fn a_version_in_use_stays_and_the_refusal_says_by_what() {
    let mut registry = Registry::default();
    registry
        .register_model_version(&name("iris"), contents("a"), T0)
        .expect("registers");
    let refused = registry
        .delete_model_version(&name("iris"), 1, &|_, _| Some("endpoint e".into()))
        .expect_err("in use");
    assert_eq!(refused.status, 409);
    assert!(refused.message.contains("endpoint e"), "{refused}");
    assert!(registry.model(&name("iris"), 1).is_some());
}

#[test]
fn a_description_that_is_too_long_loses_its_signature_before_what_chooses_the_runtime() {
    let mut registry = Registry::default();
    let mut long = contents("a");
    long.description.flavors = BTreeMap::from([("sklearn".into(), "1.7".into())]);
    long.description.requirements = vec!["mlflow==3".into()];
    long.description.signature = Some(Signature {
        inputs: Some("x".repeat(20_000)),
        ..Signature::default()
    });
    registry
        .register_model_version(&name("wide"), long, T0)
        .expect("registers");
    let kept = &registry
        .model(&name("wide"), 1)
        .expect("is there")
        .description;
    assert_eq!(kept.signature, None);
    assert_eq!(kept.requirements.len(), 1);
    assert_eq!(kept.flavors.len(), 1);
}

#[test]
fn an_image_is_no_model() {
    let mut wrong = contents("a");
    wrong.description.kind = Kind::Image;
    let refused = Registry::default()
        .register_model_version(&name("iris"), wrong, T0)
        .expect_err("an image");
    assert!(
        refused.message.contains("stokehold image import"),
        "{refused}"
    );
}

#[test]
fn an_image_of_ninety_layers_fits_a_record_and_is_restored_as_it_was() {
    let mut registry = Registry::default();
    let mut entries = Entries::new();
    let planned = image(90);
    apply(
        &mut entries,
        registry.register_image(planned.clone(), T0).expect("fits"),
    );
    assert_eq!(registry.register_image(planned.clone(), T0), Ok(vec![]));
    let restored = Registry::restore(&entries).expect("restores");
    assert_eq!(restored.image(&planned.reference), Some(&planned));
    assert_eq!(
        restored.live_manifests(),
        [planned.origin.layout().expect("a layout")]
    );
    let info = restored.images().next().expect("one").info();
    assert_eq!((info.layers, info.size_bytes), (90, 9_200));

    let of_registry = PlannedImage {
        origin: ImageOrigin::Registry,
        ..planned
    };
    let ops = registry.register_image(of_registry.clone(), T0);
    apply(&mut entries, ops.expect("fits"));
    let restored = Registry::restore(&entries).expect("restores");
    assert_eq!(restored.image(&of_registry.reference), Some(&of_registry));
    assert_eq!(restored.live_manifests(), []);
}

fn issue(registry: &mut Registry, entries: &mut Entries) -> shared::token::JoinToken {
    let new = NewJoinToken {
        roles: vec![],
        lifetime_s: Some(60),
        addresses: vec!["s:7443".into()],
        ca_sha256: "0".repeat(64),
        replace: None,
    };
    let (token, ops) = registry
        .create_join_token(new, &secret(1), T0)
        .expect("issues");
    apply(entries, ops);
    token
}

#[test]
fn a_join_token_admits_each_role_once_and_one_node_alone() {
    let (mut registry, mut entries) = (Registry::default(), Entries::new());
    let token = issue(&mut registry, &mut entries);
    let (n1, n2) = (node("n1"), node("n2"));
    let attempt = Redemption {
        id: &token.id,
        secret: &token.secret,
        role: Role::Agent,
        node: &n1,
        key_hash: "k1",
        until_unix: 0,
    };
    let wrong_secret = Redemption {
        secret: "00",
        ..attempt
    };
    assert!(matches!(
        registry.redeem(&wrong_secret, T0),
        Err(JoinRefusal::WrongSecret { .. })
    ));
    let wrong_role = Redemption {
        role: Role::Scheduler,
        ..attempt
    };
    assert!(matches!(
        registry.redeem(&wrong_role, T0),
        Err(JoinRefusal::WrongRole { .. })
    ));
    apply(&mut entries, registry.redeem(&attempt, T0).expect("admits"));

    let mut registry = Registry::restore(&entries).expect("restores");
    assert_eq!(
        registry.redeem(&attempt, T0),
        Ok(vec![]),
        "a lost answer is repeated"
    );
    let other_key = Redemption {
        key_hash: "k2",
        until_unix: 0,
        ..attempt
    };
    assert!(matches!(
        registry.redeem(&other_key, T0),
        Err(JoinRefusal::Used { .. })
    ));
    let gateway = Redemption {
        role: Role::Gateway,
        ..attempt
    };
    let elsewhere = Redemption {
        node: &n2,
        ..gateway
    };
    assert!(matches!(
        registry.redeem(&elsewhere, T0),
        Err(JoinRefusal::WrongNode { .. })
    ));
    assert!(registry.redeem(&gateway, T0).is_ok());
    let roles = &registry.node(&n1).expect("joined").roles;
    assert_eq!(roles.len(), 2);
}

#[test]
fn a_join_token_expires_and_is_forgotten_a_day_later() {
    let (mut registry, mut entries) = (Registry::default(), Entries::new());
    let token = issue(&mut registry, &mut entries);
    let n1 = node("n1");
    let attempt = Redemption {
        id: &token.id,
        secret: &token.secret,
        role: Role::Agent,
        node: &n1,
        key_hash: "k1",
        until_unix: 0,
    };
    assert_eq!(
        registry.redeem(&attempt, T0 + 60),
        Err(JoinRefusal::Expired {
            id: token.id.clone()
        })
    );
    let new = NewJoinToken {
        roles: vec![Role::Agent],
        lifetime_s: None,
        addresses: vec![],
        ca_sha256: String::new(),
        replace: None,
    };
    let (_, ops) = registry
        .create_join_token(new, &secret(2), T0 + 200_000)
        .expect("issues");
    assert_eq!(ops.len(), 2, "one written, one forgotten: {ops:?}");
    assert_eq!(registry.join_tokens().count(), 1);
}

#[test]
fn a_revoked_node_stays_revoked_and_cannot_join_again() {
    let (mut registry, mut entries) = (Registry::default(), Entries::new());
    let token = issue(&mut registry, &mut entries);
    let n1 = node("n1");
    let attempt = |role| Redemption {
        id: &token.id,
        secret: &token.secret,
        role,
        node: &n1,
        key_hash: "k",
        until_unix: 0,
    };
    assert_eq!(registry.revoke(&n1).expect_err("never joined").status, 404);
    let ops = registry.redeem(&attempt(Role::Agent), T0).expect("admits");
    apply(&mut entries, ops);
    apply(&mut entries, registry.revoke(&n1).expect("revokes"));
    let mut registry = Registry::restore(&entries).expect("restores");
    assert!(registry.is_revoked(&n1));
    assert!(matches!(
        registry.redeem(&attempt(Role::Gateway), T0),
        Err(JoinRefusal::Revoked { .. })
    ));
}

#[test]
fn a_bearer_token_is_known_by_its_whole_text_only_and_the_last_admin_stays() {
    let (mut registry, mut entries) = (Registry::default(), Entries::new());
    let (token, ops) = registry
        .create_token("admin", TokenRole::Admin, &secret(7), T0)
        .expect("creates");
    let stored = format!("{ops:?}");
    assert!(!stored.contains(token.expose()));
    apply(&mut entries, ops);
    let mut registry = Registry::restore(&entries).expect("restores");
    let known = registry.authenticate(token.expose()).expect("known");
    assert_eq!(known.name, "admin");
    for wrong in ["", "shk_", "shk_0000000000000007_x", &token.expose()[1..]] {
        assert!(
            registry.authenticate(wrong).is_none(),
            "{wrong:?} was accepted"
        );
    }
    let again = registry.create_token("admin", TokenRole::Query, &secret(8), T0);
    assert_eq!(again.expect_err("taken").code, "RESOURCE_ALREADY_EXISTS");
    let refused = registry
        .delete_token(&token.id)
        .expect_err("the last admin");
    assert_eq!(refused.status, 409);
    assert_eq!(registry.grants().len(), 1);
}

#[test]
fn a_replaced_token_leaves_its_predecessor_worthless() {
    let (mut registry, mut entries) = (Registry::default(), Entries::new());
    let create = |registry: &mut Registry, bits| {
        registry
            .replace_token("admin", TokenRole::Admin, &secret(bits), T0)
            .expect("creates")
    };
    let (old, ops) = create(&mut registry, 1);
    apply(&mut entries, ops);
    let (new, ops) = create(&mut registry, 2);
    apply(&mut entries, ops);
    for registry in [registry, Registry::restore(&entries).expect("restores")] {
        assert!(registry.authenticate(old.expose()).is_none());
        assert!(registry.authenticate(new.expose()).is_some());
    }
}

#[test]
fn a_record_of_a_later_program_is_refused_by_name() {
    let entries = Entries::from([(
        "node/n1".to_owned(),
        br#"{"v":2,"joined_unix_ms":0,"roles":[]}"#.to_vec(),
    )]);
    let error = Registry::restore(&entries).expect_err("a later version");
    assert!(
        error.to_string().contains("node/n1 has version 2"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn restoring_arbitrary_records_never_panics(
        prefix in "(model/iris/1|modelHead/iris|alias/iris/prod|image/x|node/n1|joinToken/0000000000000001|token/0000000000000001)",
        value in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let _ = Registry::restore(&Entries::from([(prefix, value)]));
    }

    #[test]
    fn authenticating_arbitrary_text_never_panics(text in ".{0,80}") {
        let mut registry = Registry::default();
        registry.create_token("a", TokenRole::Query, &secret(1), T0).expect("creates");
        prop_assert!(registry.authenticate(&text).is_none());
    }
}
