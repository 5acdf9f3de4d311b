//! Folders as MLflow, Hugging Face and Triton write them.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::scan::{ScanOptions, scan};

/// As MLflow 3.17 wrote it for a scikit-learn classifier.
const SKLEARN: &str = r#"flavors:
  python_function:
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.sklearn
    model_path: model.skops
    predict_fn: predict
    python_version: 3.11.7
  sklearn:
    code: null
    pickled_model: model.skops
    serialization_format: skops
    sklearn_version: 1.9.1
    skops_trusted_types: null
is_signature_from_type_hint: false
mlflow_version: 3.17.2
model_id: null
model_size_bytes: 26969
signature:
  inputs: '[{"type": "double", "name": "sepal length (cm)", "required": true}, {"type":
    "double", "name": "sepal width (cm)", "required": true}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
  params: null
utc_time_created: '2026-11-24 05:40:22.782069'
"#;

fn described(files: &[(&str, &str)]) -> Result<Description, DescribeError> {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("has a folder")).expect("folder");
        fs::write(path, text).expect("file");
    }
    let files = scan(dir.path(), ScanOptions::default()).expect("scans");
    describe(dir.path(), &files)
}

fn message(files: &[(&str, &str)]) -> String {
    let error = described(files).expect_err("refused");
    let cause = std::error::Error::source(&error).map(|c| format!(": {c}"));
    let hint = error.hint().expect("says how to mend it");
    format!("{error}{}; {hint}", cause.unwrap_or_default())
}

fn flavors(description: &Description) -> Vec<(&str, &str)> {
    let flavors = description.flavors.iter();
    flavors.map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

#[test]
fn an_mlflow_model_is_described_by_its_mlmodel_and_requirements() {
    let description = described(&[
        ("MLmodel", SKLEARN),
        ("model.skops", "x"),
        ("requirements.txt", "mlflow==3.17.2\nscikit-learn==1.9.1\n"),
        ("python_env.yaml", "python: 3.11.7\n"),
    ])
    .expect("described");
    assert_eq!(
        flavors(&description),
        [("python_function", "3.17.2"), ("sklearn", "1.9.1")]
    );
    assert_eq!(description.python_version.as_deref(), Some("3.11.7"));
    assert_eq!(
        description.requirements,
        ["mlflow==3.17.2", "scikit-learn==1.9.1"]
    );
    let signature = description.signature.expect("has one");
    assert!(
        signature
            .inputs
            .expect("has inputs")
            .contains("sepal width (cm)")
    );
    assert_eq!(signature.params, None);
    assert_eq!((description.kind, description.task), (Kind::Model, None));
}

#[test]
fn a_version_keeps_its_text_where_yaml_sees_a_number() {
    let text = "flavors:\n  python_function:\n    loader_module: m\n    python_version: 3.10\n  xgboost:\n    xgb_version: 3.0\n";
    let description = described(&[("MLmodel", text)]).expect("described");
    assert_eq!(description.python_version.as_deref(), Some("3.10"));
    assert_eq!(
        flavors(&description),
        [("python_function", ""), ("xgboost", "3.0")]
    );
}

#[test]
fn a_chat_model_gives_its_task_architecture_and_weights() {
    let mlmodel = "flavors:\n  python_function: {loader_module: m}\n  transformers:\n    task: text-generation\n    transformers_version: 4.57\nmetadata:\n  task: llm/v1/chat\n";
    let description = described(&[
        ("MLmodel", mlmodel),
        (
            "model/config.json",
            r#"{"architectures":["LlamaForCausalLM"]}"#,
        ),
        ("model/model.safetensors", "0123456789"),
    ])
    .expect("described");
    assert_eq!(description.task.as_deref(), Some("llm/v1/chat"));
    assert_eq!(description.architectures, ["LlamaForCausalLM"]);
    assert_eq!(description.weight_bytes, 10);
}

#[test]
fn a_hugging_face_folder_needs_no_mlmodel() {
    let description = described(&[
        ("config.json", r#"{"architectures":["BertModel"],"x":1}"#),
        ("a.safetensors", "1234"),
        ("b.bin", "12"),
    ])
    .expect("described");
    assert_eq!(description.architectures, ["BertModel"]);
    assert_eq!(description.weight_bytes, 6);
}

#[test]
fn a_folder_that_claims_nothing_is_a_model_with_an_empty_description() {
    let description = described(&[("anything/at/all", "x")]).expect("described");
    assert_eq!(description, Description::default());
    let other = described(&[("config.json", "[1]")]).expect("described");
    assert_eq!(other, Description::default());
}

#[test]
fn a_triton_repository_is_known_by_its_version_folders() {
    let repository = [("iris/config.pbtxt", ""), ("iris/1/model.onnx", "xyz")];
    let description = described(&repository).expect("described");
    assert!(description.triton_repository);
    assert_eq!(description.weight_bytes, 3);
    let text = message(&[("iris/config.pbtxt", ""), ("iris/model.onnx", "x")]);
    assert!(
        text.contains("iris/config.pbtxt") && text.contains("version number"),
        "{text}"
    );
    let text = message(&[("config.pbtxt", ""), ("1/model.onnx", "x")]);
    assert!(text.contains("push the folder that holds NAME"), "{text}");
}

#[test]
fn an_image_layout_is_an_image() {
    let description = described(&[
        ("oci-layout", "{}"),
        ("index.json", "{}"),
        ("blobs/sha256/00", "x"),
    ])
    .expect("described");
    assert_eq!(description.kind, Kind::Image);
}

#[test]
fn a_broken_mlmodel_is_named_with_the_place() {
    let text = message(&[("MLmodel", "flavors:\n  sklearn: [unclosed\n")]);
    assert!(text.contains("MLmodel") && text.contains("line"), "{text}");
    let text = message(&[("MLmodel", "mlflow_version: 3\n")]);
    assert!(text.contains("missing field `flavors`"), "{text}");
    let text = message(&[("MLmodel", "flavors: {}\n")]);
    assert!(text.contains("names no flavor"), "{text}");
    let text = message(&[("MLmodel", "flavors: {a: {}}\nsignature: {inputs: '[1,'}\n")]);
    assert!(text.contains("signature.inputs is not JSON"), "{text}");
    let text = message(&[("MLmodel", "")]);
    assert!(text.contains("MLmodel"), "{text}");
}

#[test]
fn a_flavor_that_names_what_is_not_there_is_refused_with_its_line() {
    let text = message(&[("iris/x", ""), ("MLmodel", SKLEARN)]);
    let named = "MLmodel: line 7: flavor \"python_function\" names model_path \"model.skops\", \
                 which is not in the folder; save the model again";
    assert!(text.contains(named), "{text}");
    let of_sklearn = "flavors:\n  python_function:\n    loader_module: m\n    data: here\n\n  sklearn:\n    pickled_model: ../model.pkl\n";
    let text = message(&[("here/x", ""), ("MLmodel", of_sklearn)]);
    assert!(
        text.contains("line 7: flavor \"sklearn\" names pickled_model \"../model.pkl\""),
        "{text}"
    );
    let text = message(&[("MLmodel", "flavors:\n  python_function:\n    env: x\n")]);
    assert!(
        text.contains("MLmodel: line 2: flavor \"python_function\" names no loader_module"),
        "{text}"
    );
    // What is no path is left alone.
    let other =
        "flavors: {a: {data: {x: [1]}, model_path: null, model_data: 3, python_model: [d]}}\n";
    assert!(described(&[("MLmodel", other)]).is_ok());
}

#[test]
fn what_keeps_a_folder_from_being_deployed_is_said_of_it() {
    let said = |files: &[(&str, &str)]| gap(&described(files).expect("described"));
    let mlflow = [("MLmodel", SKLEARN), ("model.skops", "x")];
    assert_eq!(said(&mlflow), None);
    assert_eq!(said(&[("config.json", r#"{"architectures":["A"]}"#)]), None);
    assert_eq!(said(&[("a/config.pbtxt", ""), ("a/1/x", "")]), None);
    let plain = said(&[("weights.bin", "x")]).expect("said");
    assert!(plain.contains("no MLmodel file"), "{plain}");
    let bare = said(&[("MLmodel", "flavors:\n  onnx: {data: m}\n"), ("m", "")]).expect("said");
    assert!(bare.contains("onnx and no python_function"), "{bare}");
}

#[test]
fn a_model_saved_in_part_or_pushed_from_one_folder_too_high_is_noticed() {
    let text = message(&[("python_env.yaml", ""), ("model.skops", "x")]);
    assert!(text.contains("no MLmodel file"), "{text}");
    let text = message(&[("iris/MLmodel", SKLEARN), ("iris/model.skops", "x")]);
    assert!(text.contains("push ") && text.ends_with("/iris"), "{text}");
}

#[test]
fn broken_json_is_named_with_the_line() {
    let text = message(&[("config.json", "{\n \"architectures\": [}")]);
    assert!(
        text.contains("config.json") && text.contains("line 2"),
        "{text}"
    );
    let text = message(&[("config.json", r#"{"architectures": "Bert"}"#)]);
    assert!(text.contains("config.json"), "{text}");
}

#[test]
fn yaml_that_multiplies_itself_is_not_expanded() {
    let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (level, before) in ('b'..='k').zip('a'..) {
        let refs = vec![format!("*{before}"); 9].join(",");
        bomb.push_str(&format!("{level}: &{level} [{refs}]\n"));
    }
    let ignored = format!("{bomb}flavors: {{x: {{y: *k}}}}\n");
    let description = described(&[("MLmodel", &ignored)]).expect("described");
    assert_eq!(flavors(&description), [("x", "")]);
    let wanted = format!("{bomb}flavors: {{x: {{x_version: *k}}}}\n");
    assert!(message(&[("MLmodel", &wanted)]).contains("MLmodel"));
}

proptest! {
    #[test]
    fn reading_never_panics(text in ".{0,200}") {
        let _ = mlmodel::parse(&text);
        let _ = mlmodel::parse_python_env(&text);
        let _ = requirements::requirements(&text);
    }
}
