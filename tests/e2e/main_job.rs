//! The main job: a model becomes an HTTPS endpoint, and goes away again without a trace.

use serde_json::json;

use crate::harness::{Cluster, eventually};

#[test]
fn a_model_is_pushed_deployed_queried_described_and_deleted() {
    let cluster = Cluster::start();
    cluster.deploy_probe("adder", &json!({}), &[]);

    let rows = json!({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4.5]]}});
    let answer = cluster.query("adder", &rows);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["predictions"], json!([3.0, 7.5]));
    assert_eq!(answer.headers["served-model-name"], "adder-1");
    assert!(answer.headers.contains_key("x-request-id"));

    // The same by the command line, as the first steps in the README do.
    let printed = cluster.cli_json(&["query", "adder", "--data", &rows.to_string()]);
    assert_eq!(printed["predictions"], json!([3.0, 7.5]));

    let listed = cluster.cli_json(&["list"]);
    assert_eq!(listed["endpoints"][0]["name"], "adder");
    assert_eq!(listed["endpoints"][0]["state"]["ready"], "READY");
    let described = cluster.describe("adder");
    assert_eq!(described["replicas"][0]["state"], "ready");
    assert_eq!(described["replicas"][0]["node"], "n1");
    assert!(cluster.cli(&["describe", "adder"]).contains("ready"));

    cluster.query(
        "adder",
        &json!({"inputs": [[1]], "params": {"log": "a line of the model's own"}}),
    );
    eventually("the model's own line is in the log", || {
        cluster
            .cli(&["logs", "adder"])
            .contains("a line of the model's own")
            .then_some(())
    });
    let url = format!(
        "{}/api/2.0/serving-endpoints/adder/served-models/adder-1/logs",
        cluster.gateway()
    );
    assert!(
        cluster.get(&url).json()["logs"]
            .as_str()
            .expect("text")
            .contains("a line of")
    );

    cluster.cli(&["delete", "adder"]);
    assert_eq!(cluster.query("adder", &rows).status, 404);
    eventually("the endpoint is gone", || {
        let listed = cluster.cli_json(&["list"]);
        listed["endpoints"]
            .as_array()
            .expect("list")
            .is_empty()
            .then_some(())
    });
    cluster.finish();
}

#[test]
fn a_second_push_of_the_same_files_moves_nothing_and_a_deleted_model_frees_its_chunks() {
    let cluster = Cluster::start();
    let folder = cluster.probe_model("big", "1", &json!({}));
    let weights: Vec<u8> = (0..9_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    std::fs::write(folder.join("weights.bin"), &weights).expect("weights");
    let folder = folder.display().to_string();
    let first = cluster.cli_json(&["model", "push", &folder, "--name", "big"]);
    assert_eq!(first["version"], 1);
    assert!(
        first["uploaded_bytes"].as_u64().expect("bytes") >= 9_000_000,
        "{first}"
    );
    let second = cluster.cli_json(&["model", "push", &folder, "--name", "other"]);
    assert_eq!(second["uploaded_bytes"], 0, "{second}");

    // What one model still uses stays; what nobody uses goes.
    let freed = cluster.cli_json(&["model", "delete", "big/1"]);
    assert_eq!(freed["freed_bytes"], 0, "other/1 is of the same chunks");
    cluster.import_probe_image();
    cluster.cli(&["deploy", "big", "--model", "other/1", "--runtime", "probe"]);
    assert_eq!(
        cluster.query("big", &json!({"inputs": [[1, 1]]})).json()["predictions"],
        json!([2.0])
    );
    let refused = cluster.try_cli(&["model", "delete", "other/1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("big"), "{said}");
    cluster.cli(&["delete", "big"]);
    let freed = eventually("the model can be deleted", || {
        let deleted = cluster.try_cli(&["model", "delete", "other/1", "--output", "json"]);
        let text = String::from_utf8(deleted.stdout).expect("UTF-8");
        deleted.status.success().then_some(text)
    });
    let freed: serde_json::Value = serde_json::from_str(&freed).expect("JSON");
    assert!(
        freed["freed_bytes"].as_u64().expect("bytes") >= 9_000_000,
        "{freed}"
    );
    assert_eq!(cluster.cli_json(&["model", "list"])["models"], json!([]));
    cluster.finish();
}

#[test]
fn aliases_move_and_deploy_follows_them_at_the_moment_it_is_run() {
    let cluster = Cluster::start();
    cluster.import_probe_image();
    cluster.push_probe("m", "one", &json!({}));
    let second = cluster
        .probe_model("m", "two", &json!({}))
        .display()
        .to_string();
    let pushed = cluster.cli_json(&["model", "push", &second, "--name", "m", "--alias", "prod"]);
    assert_eq!(pushed["version"], 2);
    cluster.cli(&["deploy", "m", "--model", "m@prod", "--runtime", "probe"]);
    let answer = cluster.query("m", &json!({"inputs": [[1]]})).json();
    assert_eq!(answer["probe"]["model_version"], "two");
    cluster.finish();
}

#[test]
fn up_and_down_can_be_repeated_and_up_alone_twice() {
    let cluster = Cluster::start();
    cluster.deploy_probe("again", &json!({}), &[]);
    let before =
        cluster.query("again", &json!({"inputs": [[1]]})).json()["probe"]["replica"].clone();
    // A second `up` finds the first running, and says so without touching it.
    cluster.up();
    let after =
        cluster.query("again", &json!({"inputs": [[1]]})).json()["probe"]["replica"].clone();
    assert_eq!(before, after);
    let data = cluster.data().display().to_string();
    cluster.cli(&["down", "--data", &data]);
    cluster.cli(&["down", "--data", &data]);
    cluster.up();
    assert_eq!(cluster.cli_json(&["list"])["endpoints"], json!([]));
    cluster.finish();
}
