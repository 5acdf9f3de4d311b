//! Runtimes whose images a registry has: pulled ahead of need, and every cause of failure told.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Cluster, Registry, eventually};

/// A runtime like the probe's, with another name and image, as a template's file.
fn runtime(name: &str, image: &str) -> String {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/runtimes/probe.toml");
    let probe = std::fs::read_to_string(shipped).expect("template");
    probe
        .replace("name = \"probe\"", &format!("name = \"{name}\""))
        .replace("stokehold.local/runtime-probe:1", image)
}

fn image<'a>(list: &'a Value, reference: &str) -> Option<&'a Value> {
    let images = list["images"].as_array().expect("images");
    images.iter().find(|image| image["reference"] == reference)
}

#[test]
fn an_image_of_a_registry_is_pulled_ahead_and_what_is_not_to_be_had_says_why() {
    let registry = Registry::start();
    let digest = registry.push_probe("team/probe", |_| ());
    registry.push_probe("team/arm", |config| config["architecture"] = json!("arm64"));
    let nobody = format!("127.0.0.1:{}/team/x:1", crate::harness::free_port());
    let mut cluster = Cluster::start_with_templates(&[
        (
            "pulled.toml",
            runtime("pulled", &registry.reference("team/probe")),
        ),
        (
            "absent.toml",
            runtime("absent", &registry.reference("team/absent")),
        ),
        ("arm.toml", runtime("arm", &registry.reference("team/arm"))),
        ("nobody.toml", runtime("nobody", &nobody)),
    ]);
    // Three runtimes name images that cannot be had, and the log says so, too.
    cluster.announce("image is not to be had");

    // Nobody has asked for anything yet.
    let reference = registry.reference("team/probe");
    eventually("the image is unpacked on the node", || {
        let list = cluster.cli_json(&["image", "list"]);
        (image(&list, &reference)?["nodes"]["ready"] == 1).then_some(())
    });
    let model = cluster.push_probe("adder", "1", &json!({}));
    cluster.cli(&["deploy", "adder", "--model", &model, "--runtime", "pulled"]);
    let rows = json!({"inputs": [[1, 2]]});
    assert_eq!(
        cluster.query("adder", &rows).json()["predictions"],
        json!([3.0])
    );

    for (runtime, words) in [
        (
            "absent",
            vec!["team/absent:1", "does not exist", "stokehold image import"],
        ),
        ("arm", vec!["team/arm:1", "linux/amd64", "linux/arm64"]),
        ("nobody", vec![&nobody, "cannot be reached", "hosts.toml"]),
    ] {
        let refused =
            cluster.try_cli(&["deploy", "other", "--model", &model, "--runtime", runtime]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{runtime} was deployed");
        for word in words {
            assert!(said.contains(word), "{runtime}: {word:?} is not in {said}");
        }
    }
    // Nothing half-made remains, and what serves goes on.
    let listed = cluster.cli_json(&["list"]);
    let endpoints = listed["endpoints"].as_array().expect("endpoints");
    assert_eq!(endpoints.len(), 1, "{listed}");
    let list = cluster.cli_json(&["image", "list"]);
    let missing = list["missing"].to_string();
    for name in ["team/absent:1", "team/arm:1", "team/x:1"] {
        assert!(missing.contains(name), "{name} is not in {missing}");
    }

    // The tag moves: replicas that run keep theirs, the next one gets the new one.
    let moved = registry.push_probe("team/probe", |config| {
        config["config"]["Env"] = json!(["STOKEHOLD_TEST=moved"]);
    });
    assert_ne!(moved, digest);
    let before = cluster.replicas("adder");
    let pulled = cluster.cli_json(&["image", "pull", &reference]);
    assert_eq!(pulled["digest"], json!(moved), "{pulled}");
    eventually("the new image is unpacked", || {
        let list = cluster.cli_json(&["image", "list"]);
        let image = image(&list, &reference)?;
        (image["digest"] == json!(moved) && image["nodes"]["ready"] == 1).then_some(())
    });
    assert_eq!(cluster.replicas("adder"), before);
    assert_eq!(cluster.query("adder", &rows).status, 200);
    let refused = cluster.try_cli(&["image", "delete", &reference]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("adder"),
        "{said}"
    );
    // Without the endpoint its runtime's template would have it asked for again at once.
    cluster.cli(&["delete", "adder"]);
    eventually("the template is what holds the image", || {
        let refused = cluster.try_cli(&["image", "delete", &reference]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "it was deleted");
        said.contains("template of runtime pulled").then_some(())
    });
    cluster.finish();
}
