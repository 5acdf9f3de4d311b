//! A real MLflow model, trained a moment before in a container of the image that then serves it.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Cluster, eventually, images};

/// Runs Python in a container of the runtime image, as the demo does.
fn python(cluster: &Cluster, name: &str, arguments: &[&str]) -> String {
    let (_, agent) = cluster.config_of("agent");
    let socket = agent["containerd"].as_str().expect("containerd").to_owned();
    let shared = cluster.base().join("train");
    let mount = format!(
        "type=bind,src={},dst=/training,options=rbind:rw",
        shared.display()
    );
    let tmp = "type=tmpfs,dst=/tmp,options=size=256m";
    let output = Command::new("ctr")
        .args([
            "-a",
            &socket,
            "-n",
            "stokehold",
            "run",
            "--rm",
            "--mount",
            &mount,
            "--mount",
            tmp,
        ])
        .args([
            "--env",
            "HOME=/tmp",
            "--env",
            "MLFLOW_DISABLE_TELEMETRY=true",
        ])
        .args(["stokehold.local/runtime-mlflow:1", name, "/usr/bin/python3"])
        .args(arguments)
        .output()
        .expect("ctr runs");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn an_mlflow_model_answers_over_https_what_it_answers_when_run_directly() {
    let cluster = Cluster::start();
    let archive = images("runtime-mlflow").display().to_string();
    cluster.cli(&["image", "import", &archive]);
    let shared = cluster.base().join("train");
    std::fs::create_dir_all(&shared).expect("folder");
    std::os::unix::fs::chown(&shared, Some(65_534), Some(65_534)).expect("owner");
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    for script in ["train_iris.py", "predict.py"] {
        std::fs::copy(scripts.join(script), shared.join(script)).expect("script");
    }
    // Images are pulled ahead of need: the runtime is there before anybody deploys.
    let (_, agent) = cluster.config_of("agent");
    let socket = agent["containerd"].as_str().expect("containerd").to_owned();
    eventually("the runtime's image is on the node", || {
        let output = Command::new("ctr")
            .args(["-a", &socket, "-n", "stokehold", "image", "check", "-q"])
            .output()
            .expect("ctr runs");
        String::from_utf8_lossy(&output.stdout)
            .contains("runtime-mlflow")
            .then_some(())
    });
    python(
        &cluster,
        "train",
        &["/training/train_iris.py", "/training/iris"],
    );
    let rows = json!({"dataframe_split": {
        "columns": ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"],
        "data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3], [5.9, 3.0, 4.2, 1.5]],
    }});
    std::fs::write(shared.join("rows.json"), rows.to_string()).expect("rows");
    let direct = python(
        &cluster,
        "direct",
        &[
            "/training/predict.py",
            "/training/iris",
            "/training/rows.json",
        ],
    );
    let direct: Value = serde_json::from_str(direct.trim()).expect("JSON");

    let model = shared.join("iris").display().to_string();
    let pushed = cluster.cli_json(&["model", "push", &model, "--name", "iris"]);
    assert_eq!(pushed["version"], 1);
    // No runtime is named: the model's own description chooses it.
    cluster.cli(&["deploy", "iris", "--model", "iris/1"]);
    let answer = cluster.query("iris", &rows);
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    assert_eq!(answer.json()["predictions"], direct["predictions"]);

    let wrong = cluster.query(
        "iris",
        &json!({"dataframe_split": {"columns": ["x"], "data": [[1]]}}),
    );
    assert_eq!(
        wrong.status,
        400,
        "{}",
        String::from_utf8_lossy(&wrong.body)
    );
    // The words are MLflow's own, passed through.
    assert_eq!(wrong.json()["error_code"], "INVALID_PARAMETER_VALUE");
    cluster.finish();
}
