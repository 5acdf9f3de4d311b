//! Names and values of the command line and of REST bodies.

use serde_json::{Value, json};

use super::{There, deploy_steady, nothing_is_left, run, server};
use crate::harness::Cluster;

#[test]
fn a_wrong_name_gets_one_sentence_wherever_it_is_written() {
    let cluster = Cluster::start();
    deploy_steady(&cluster);
    let before = There::in_cluster(&cluster);
    let create = format!("{}/api/2.0/serving-endpoints", cluster.gateway());
    let body = |name: &str, entity: &str, model: &str| {
        json!({"name": name, "config": {"served_entities": [{
            "name": entity, "entity_name": model, "entity_version": "1",
            "stokehold": {"runtime": "probe"},
        }]}})
    };
    let refused = |body: &Value| {
        let answer = cluster.post(&create, body);
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.json()["error_code"], "INVALID_PARAMETER_VALUE");
        answer.json()["message"].as_str().expect("text").to_owned()
    };
    let pattern = "(^[A-Za-z0-9_-]{1,63}$)";
    let cases: [(&[&str], Value, &str, &str); 3] = [
        (
            &["deploy", "my iris", "--model", "steady/1"],
            body("my iris", "e", "steady"),
            "name: ",
            "\"my iris\" is not a valid endpoint name: it holds ' ' as character 3, expected 1 to 63 of \
             A-Z a-z 0-9 _ - (^[A-Za-z0-9_-]{1,63}$); \"my-iris\" would do",
        ),
        (
            &["deploy", "x", "--model", "steady/1", "--entity", "a/b"],
            body("x", "a/b", "steady"),
            "served_entities[0].name: ",
            "\"a/b\" is not a valid served entity name: it holds '/' as character 2, expected 1 to 63 of \
             A-Z a-z 0-9 _ - (^[A-Za-z0-9_-]{1,63}$); \"a-b\" would do",
        ),
        (
            &["model", "push", "/nowhere", "--name", "größe"],
            body("x", "e", "größe"),
            "served_entities[0].entity_name: ",
            "\"größe\" is not a valid model name: it holds 'ö' as character 3, expected 1 to 127 of \
             A-Z a-z 0-9 _ - . starting with a letter or digit (^[A-Za-z0-9][A-Za-z0-9_.-]{0,126}$); \
             \"gr-e\" would do",
        ),
    ];
    for (line, body, field, sentence) in &cases {
        let told = run(&cluster, line);
        told.says(2, &[sentence]);
        assert_eq!(refused(body), format!("{field}{sentence}"));
        let error = run(&cluster, &[*line, &["--output", "json"]].concat()).error();
        assert_eq!(
            (&error["code"], &error["exit_code"]),
            (&json!("USAGE"), &json!(2))
        );
        let message = error["message"].as_str().expect("message");
        assert!(message.ends_with(sentence), "{message}");
    }
    let long = "n".repeat(64);
    let told = refused(&body(&long, "e", "steady"));
    assert!(
        told.contains("it has 64 characters") && told.contains(pattern),
        "{told}"
    );
    nothing_is_left(&cluster, &before);
    cluster.finish();
}

#[test]
fn secrets_come_from_a_file_and_errors_for_programs_are_json() {
    let cluster = Cluster::start();
    deploy_steady(&cluster);
    let before = There::in_cluster(&cluster);
    let file = cluster.base().join("iris.env");
    let shown = file.display().to_string();
    let deploy = [
        "deploy",
        "steady",
        "--model",
        "steady/1",
        "--runtime",
        "probe",
        "--max-replicas",
        "1",
    ];
    let with_file = [&deploy[..], &["--env-file", &shown, "--env", "B=flag"]].concat();

    run(&cluster, &with_file).says(1, &["read --env-file", "No such file"]);
    std::fs::write(&file, "A=1\nwhat-is-secret\n").expect("file");
    let told = run(&cluster, &with_file);
    told.says(2, &["iris.env: line 2 is not KEY=VALUE"]);
    assert!(!told.stderr.contains("what-is-secret"), "{}", told.stderr);
    nothing_is_left(&cluster, &before);

    std::fs::write(&file, "# of the model\nA=from a file\nB=file\n").expect("file");
    cluster.cli(&with_file);
    let got = cluster.cli_json(&["get", "steady"]);
    assert_eq!(
        got["config"]["served_entities"][0]["environment_vars"],
        json!({"A": "from a file", "B": "flag"})
    );

    let told = run(&cluster, &["get", "nobody", "--output", "json"]);
    told.says(4, &[]);
    let error = told.error();
    assert_eq!(error["code"], "RESOURCE_DOES_NOT_EXIST");
    assert_eq!(
        (&error["http_status"], &error["exit_code"]),
        (&json!(404), &json!(4))
    );
    assert!(error["request_id"].is_string() && told.stdout.is_empty());
    let nowhere = server(&cluster, "https://127.0.0.1:1");
    let line: Vec<&str> = ["list", "--output", "json"]
        .into_iter()
        .chain(nowhere.iter().map(String::as_str))
        .collect();
    let error = run(&cluster, &line).error();
    assert_eq!(
        (&error["code"], &error["exit_code"]),
        (&json!("UNREACHABLE"), &json!(3))
    );
    cluster.finish();
}
