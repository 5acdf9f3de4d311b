//! What the REST API accepts, refuses and answers.

mod sim;

use scheduler_core::ApiError;
use serde_json::{Value, json};
use shared::api::autoscaler::TargetOrigin;
use shared::api::serving::{ConfigInput, CreateEndpoint, Detailed};
use sim::{Behaviour, Sim};

fn cluster() -> Sim {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.push_model("a.b.flower", Behaviour::starts_in(1));
    sim.push_described("plain", Behaviour::starts_in(1), Default::default());
    sim.steps(2);
    sim
}

fn create(sim: &mut Sim, body: &Value) -> Result<Detailed, ApiError> {
    let input: CreateEndpoint = serde_json::from_value(body.clone()).map_err(|problem| {
        // As the shell answers a body that does not parse.
        ApiError::invalid(problem.to_string())
    })?;
    sim.create(input)
}

fn update(sim: &mut Sim, body: &Value) -> Result<Detailed, ApiError> {
    let input: ConfigInput = serde_json::from_value(body.clone()).expect("parses");
    sim.update("e", input)
}

/// A create of endpoint `e` with one entity of `iris/1` that has these fields too.
fn with_entity(fields: Value) -> Value {
    let mut entity = json!({"entity_name": "iris", "entity_version": "1"});
    let (Value::Object(entity_fields), Value::Object(fields)) = (&mut entity, fields) else {
        panic!("objects");
    };
    entity_fields.extend(fields);
    json!({"name": "e", "config": {"served_entities": [entity]}})
}

#[test]
fn each_refusal_names_its_field_and_changes_nothing() {
    let iris = json!({"entity_name": "iris", "entity_version": 1});
    let top = |field: &str, value: Value| {
        let mut body = json!({"name": "e", "config": {"served_entities": [iris.clone()]}});
        body[field] = value;
        body
    };
    let configured = |config: Value| json!({"name": "e", "config": config});
    let two = json!([
        {"name": "x", "entity_name": "iris", "entity_version": 1},
        {"name": "y", "entity_name": "iris", "entity_version": 2},
    ]);
    let routed = |routes: Value| {
        configured(json!({"served_entities": two.clone(), "traffic_config": {"routes": routes}}))
    };
    let table: Vec<(Value, &str)> = vec![
        (json!({"name": ""}), "name: "),
        (json!({"name": "a b"}), "name: "),
        (json!({"name": "e\n"}), "name: "),
        (json!({"name": "x".repeat(64)}), "name: "),
        (json!({"name": "pt"}), "name: pt is reserved"),
        (json!({"name": "chat"}), "name: chat is reserved"),
        (
            json!({"name": "completions"}),
            "name: completions is reserved",
        ),
        (
            json!({"name": "embeddings"}),
            "name: embeddings is reserved",
        ),
        (json!({"name": "responses"}), "name: responses is reserved"),
        (top("route_optimized", json!(true)), "route_optimized: "),
        (top("rate_limits", json!([{"calls": 1}])), "rate_limits: "),
        (
            top("telemetry_config", json!({"x": 1})),
            "telemetry_config: ",
        ),
        (
            top("email_notifications", json!({"on_update_failure": ["a@b"]})),
            "email_notifications: ",
        ),
        (
            top(
                "ai_gateway",
                json!({"guardrails": {"input": {"safety": true}}}),
            ),
            "ai_gateway.guardrails: ",
        ),
        (
            top("tags", json!([{"key": "a"}, {"key": "a"}])),
            "tags: \"a\" stands twice",
        ),
        (top("tags", json!([{"key": ""}])), "tags: "),
        (configured(json!({})), "served_entities: "),
        (
            configured(json!({"served_entities": []})),
            "served_entities: ",
        ),
        (
            configured(json!({"name": "other", "served_entities": [iris.clone()]})),
            "config.name: ",
        ),
        (
            configured(json!({
                "served_entities": [iris.clone()], "auto_capture_config": {"enabled": true}
            })),
            "auto_capture_config.enabled: ",
        ),
        (
            configured(json!({"served_entities": vec![iris.clone(); 11]})),
            "served_entities: at most 10",
        ),
        (
            configured(json!({"served_entities": [iris.clone(), iris.clone()]})),
            "served_entities[1].name: iris-1 stands twice",
        ),
        (
            configured(json!({"served_entities": two})),
            "traffic_config: ",
        ),
        (
            routed(json!([{"served_entity_name": "x", "traffic_percentage": 90}])),
            "traffic_config: percentages must sum to 100, these sum to 90",
        ),
        (
            routed(json!([{"served_entity_name": "z", "traffic_percentage": 100}])),
            "traffic_config.routes[0].served_entity_name: ",
        ),
        (
            routed(json!([{"served_entity_name": "x", "traffic_percentage": "9.5"}])),
            "traffic_config.routes[0].traffic_percentage: ",
        ),
        (
            routed(json!([{"served_entity_name": "x"}])),
            "traffic_config.routes[0].traffic_percentage: ",
        ),
        (
            routed(json!([{"traffic_percentage": 100}])),
            "traffic_config.routes[0].served_entity_name: is missing",
        ),
        (
            with_entity(json!({"name": "a/b"})),
            "served_entities[0].name: ",
        ),
        (
            with_entity(json!({"entity_name": null})),
            "served_entities[0].entity_name: is missing",
        ),
        (
            with_entity(json!({"entity_version": null})),
            "served_entities[0].entity_version: is missing",
        ),
        (
            with_entity(json!({"entity_version": "@prod"})),
            "served_entities[0].entity_version: expected a whole number",
        ),
        (
            with_entity(json!({"entity_version": 9})),
            "served_entities[0].entity_name: model iris has no version 9, it has 1, 2",
        ),
        (
            with_entity(json!({"workload_size": "small"})),
            "served_entities[0].workload_size: expected Small, Medium or Large",
        ),
        (
            with_entity(json!({"workload_size": "Small", "min_provisioned_concurrency": 4})),
            "served_entities[0].workload_size: excludes",
        ),
        (
            with_entity(json!({"min_provisioned_concurrency": 4})),
            "served_entities[0].max_provisioned_concurrency: is missing",
        ),
        (
            with_entity(
                json!({"min_provisioned_concurrency": 6, "max_provisioned_concurrency": 8}),
            ),
            "served_entities[0].min_provisioned_concurrency: expected a multiple of 4",
        ),
        (
            with_entity(
                json!({"min_provisioned_concurrency": 8, "max_provisioned_concurrency": 4}),
            ),
            "served_entities[0].max_provisioned_concurrency: expected at least 8",
        ),
        (
            with_entity(
                json!({"min_provisioned_concurrency": 0, "max_provisioned_concurrency": 4}),
            ),
            "served_entities[0].min_provisioned_concurrency: 0 needs",
        ),
        (
            with_entity(json!({"workload_type": "TPU"})),
            "served_entities[0].workload_type: expected one of CPU, ",
        ),
        (
            with_entity(json!({"workload_type": "GPU_LARGE"})),
            "served_entities[0].workload_type: GPU_LARGE needs a node",
        ),
        (
            with_entity(json!({"external_model": {"provider": "x"}})),
            "served_entities[0].external_model: ",
        ),
        (
            with_entity(json!({"max_provisioned_throughput": 10})),
            "served_entities[0].max_provisioned_throughput: ",
        ),
        (
            with_entity(json!({"burst_scaling_enabled": true})),
            "served_entities[0].burst_scaling_enabled: ",
        ),
        (
            with_entity(json!({"workload_sise": "Small"})),
            "unknown field `workload_sise`",
        ),
        (
            with_entity(json!({"environment_vars": {"1x": "y"}})),
            "served_entities[0].environment_vars: ",
        ),
        (
            with_entity(json!({"environment_vars": {"KEY": "{{secrets/a/b}}"}})),
            "served_entities[0].environment_vars: ",
        ),
        (
            with_entity(json!({"environment_vars": {"KEY": "x".repeat(5000)}})),
            "served_entities[0].environment_vars: ",
        ),
        (
            with_entity(json!({"stokehold": {"runtime": "vllm"}})),
            "served_entities[0].stokehold.runtime: there is no runtime \"vllm\", known are mlflow",
        ),
        (
            with_entity(json!({"entity_name": "plain"})),
            "served_entities[0].stokehold.runtime: model plain/1 holds no MLmodel",
        ),
        (
            with_entity(json!({"entity_name": "plain", "stokehold": {"runtime": "mlflow"}})),
            "served_entities[0].stokehold.runtime: mlflow serves the python_function flavor, and model \
             plain/1 holds no MLmodel file: push the folder",
        ),
        (
            with_entity(json!({"stokehold": {"min_replicas": 0}})),
            "served_entities[0].stokehold.min_replicas: 0 needs",
        ),
        (
            with_entity(json!({"stokehold": {"min_replicas": 3, "max_replicas": 2}})),
            "served_entities[0].stokehold.min_replicas: 3 is more than",
        ),
        (
            with_entity(json!({"stokehold": {"max_replicas": 0}})),
            "served_entities[0].stokehold.max_replicas: ",
        ),
        (
            with_entity(json!({"stokehold": {"target_concurrency": 0}})),
            "served_entities[0].stokehold.target_concurrency: ",
        ),
        (
            with_entity(json!({"stokehold": {"latency_objective_ms": 0}})),
            "served_entities[0].stokehold.latency_objective_ms: ",
        ),
        (
            with_entity(json!({"stokehold": {"memory_bytes": 1000}})),
            "served_entities[0].stokehold.memory_bytes ",
        ),
        (
            with_entity(json!({"scale_to_zero_enabled": true, "stokehold": {"min_replicas": 1}})),
            "served_entities[0].stokehold.min_replicas: 1 contradicts",
        ),
    ];
    let mut sim = cluster();
    let before = sim.entries.clone();
    for (body, expected) in table {
        let refused = create(&mut sim, &body).expect_err(&body.to_string());
        assert!(refused.message.contains(expected), "{body}: {refused}");
        let code = if expected.contains("has no version") {
            "RESOURCE_DOES_NOT_EXIST"
        } else {
            "INVALID_PARAMETER_VALUE"
        };
        assert_eq!(refused.code, code, "{body}");
    }
    assert_eq!(sim.entries, before);
}

#[test]
fn what_clients_send_without_meaning_it_is_accepted() {
    let bodies = [
        json!({"name": "e"}),
        json!({"name": "e", "config": null, "tags": null, "ai_gateway": null, "unknown": 1}),
        json!({
            "name": "e", "route_optimized": false, "rate_limits": [], "email_notifications": {},
            "ai_gateway": {"usage_tracking_config": {"enabled": true}},
            "budget_policy_id": "b", "tags": [{"key": "team"}, {"key": "env", "value": "x"}],
            "config": {
                "name": "e", "auto_capture_config": {"enabled": false}, "traffic_config": null,
                "served_models": [{
                    "model_name": "iris", "model_version": "1", "workload_size": "Small",
                    "scale_to_zero_enabled": false, "external_model": null,
                    "min_provisioned_throughput": 0, "burst_scaling_enabled": false,
                    "instance_profile_arn": "", "environment_vars": {}
                }]
            }
        }),
    ];
    for body in bodies {
        let made = create(&mut cluster(), &body);
        assert!(made.is_ok(), "{body}: {made:?}");
    }
}

#[test]
fn sizes_become_bounds_of_replicas() {
    let table = [
        // Least and most replicas, and the target where it is pinned.
        (json!({}), (1, 4, None)),
        (json!({"workload_size": "Small"}), (1, 1, None)),
        (json!({"workload_size": "Medium"}), (1, 4, None)),
        (json!({"workload_size": "Large"}), (1, 16, None)),
        (
            json!({"workload_size": "Medium", "scale_to_zero_enabled": true}),
            (0, 4, None),
        ),
        (
            json!({"min_provisioned_concurrency": 4, "max_provisioned_concurrency": 1024}),
            (1, 256, None),
        ),
        (
            json!({"workload_size": "Large", "stokehold": {"target_concurrency": 10}}),
            (2, 7, Some(10)),
        ),
        (
            json!({"workload_size": "Medium", "stokehold": {"target_concurrency": 4}}),
            (2, 4, Some(4)),
        ),
        (
            json!({"workload_size": "Large", "stokehold": {"max_replicas": 2}}),
            (1, 2, None),
        ),
        (json!({"stokehold": {"min_replicas": 9}}), (9, 9, None)),
    ];
    for (fields, expected) in table {
        let made = create(&mut cluster(), &with_entity(fields.clone())).expect("valid");
        let entity = &made.pending_config.expect("pending").served_entities[0];
        let ours = &entity.stokehold;
        let found = (
            ours.min_replicas.expect("answered"),
            ours.max_replicas.expect("answered"),
            ours.target_concurrency,
        );
        assert_eq!(found, expected, "{fields}");
        assert_eq!(
            entity.workload_size.is_some(),
            fields.get("workload_size").is_some(),
            "sizing is answered as it was given"
        );
    }
}

#[test]
fn hardware_classes_scale_the_runtimes_own_limits() {
    let made = create(
        &mut cluster(),
        &with_entity(json!({"workload_type": "CPU_MEDIUM"})),
    )
    .expect("valid");
    let entity = &made.pending_config.expect("pending").served_entities[0];
    assert_eq!(entity.stokehold.memory_bytes, Some(2 << 30));
    assert_eq!(entity.stokehold.cpu_millis, Some(2000));
}

#[test]
fn percentages_may_be_numbers_or_texts_and_an_entity_left_out_gets_none() {
    let body = json!({"name": "e", "config": {
        "served_entities": [
            {"name": "x", "entity_name": "iris", "entity_version": 1},
            {"name": "y", "entity_name": "iris", "entity_version": "2"},
            {"name": "z", "entity_name": "a.b.flower", "entity_version": 1},
        ],
        "traffic_config": {"routes": [
            {"served_model_name": "x", "traffic_percentage": "90"},
            {"served_entity_name": "y", "traffic_percentage": 10.0},
        ]},
    }});
    let made = create(&mut cluster(), &body).expect("valid");
    let config = made.pending_config.expect("pending");
    let routes: Vec<_> = config
        .traffic_config
        .routes
        .iter()
        .map(|route| (route.served_model_name.as_str(), route.traffic_percentage))
        .collect();
    assert_eq!(routes, [("x", 90), ("y", 10), ("z", 0)]);
}

#[test]
fn a_taken_name_and_an_update_under_way_are_told_apart() {
    let mut sim = cluster();
    create(&mut sim, &with_entity(json!({}))).expect("valid");
    let taken = create(&mut sim, &with_entity(json!({}))).expect_err("taken");
    assert_eq!((taken.status, taken.code), (400, "RESOURCE_ALREADY_EXISTS"));
    let body = json!({"served_entities": [{"entity_name": "iris", "entity_version": 2}]});
    let busy = update(&mut sim, &body).expect_err("in progress");
    assert_eq!((busy.status, busy.code), (409, "RESOURCE_CONFLICT"));
    for name in ["nobody", "no name", ""] {
        let unknown = sim.core.get_endpoint(name).expect_err("unknown");
        assert_eq!(
            (unknown.status, unknown.code),
            (404, "RESOURCE_DOES_NOT_EXIST")
        );
    }
}

#[test]
fn a_put_keeps_what_it_leaves_out() {
    let mut sim = cluster();
    let body = json!({"name": "e", "config": {
        "served_entities": [
            {"name": "x", "entity_name": "iris", "entity_version": 1},
            {"name": "y", "entity_name": "iris", "entity_version": 2},
        ],
        "traffic_config": {"routes": [
            {"served_entity_name": "x", "traffic_percentage": 90},
            {"served_entity_name": "y", "traffic_percentage": 10},
        ]},
    }});
    create(&mut sim, &body).expect("valid");
    sim.until("serves", 30, |sim| sim.update_state("e") == "NOT_UPDATING");
    let before = sim.stored_replicas();

    let traffic = json!({"traffic_config": {"routes": [
        {"served_entity_name": "x", "traffic_percentage": 50},
        {"served_entity_name": "y", "traffic_percentage": 50},
    ]}});
    update(&mut sim, &traffic).expect("entities are kept");
    sim.until("moved", 10, |sim| sim.update_state("e") == "NOT_UPDATING");
    assert_eq!(sim.stored_replicas(), before, "nothing was started");
    let route = sim.route("e").expect("there");
    let percents: Vec<u32> = route.entities.iter().map(|it| it.percent).collect();
    assert_eq!(percents, [50, 50]);

    let entities = json!({"served_entities": [
        {"name": "x", "entity_name": "iris", "entity_version": 2},
        {"name": "y", "entity_name": "iris", "entity_version": 2},
    ]});
    let made = update(&mut sim, &entities).expect("the split is kept: names are the same");
    let pending = made.pending_config.expect("pending");
    assert_eq!(pending.config_version, 3);
    assert_eq!(pending.traffic_config.routes[0].traffic_percentage, 50);
    sim.until("done", 30, |sim| sim.update_state("e") == "NOT_UPDATING");

    let other = json!({"served_entities": [
        {"name": "x", "entity_name": "iris", "entity_version": 2},
        {"name": "new", "entity_name": "iris", "entity_version": 2},
    ]});
    let refused = update(&mut sim, &other).expect_err("names differ");
    assert!(refused.message.starts_with("traffic_config: "), "{refused}");
    let empty = update(&mut sim, &json!({})).expect_err("says nothing");
    assert!(empty.message.starts_with("served_entities: "), "{empty}");
}

#[test]
fn an_endpoint_without_a_config_waits_for_its_first() {
    let mut sim = cluster();
    let made = create(&mut sim, &json!({"name": "e"})).expect("valid");
    assert_eq!((made.config, made.pending_config), (None, None));
    assert_eq!(made.state.ready, "NOT_READY");
    assert_eq!(made.state.config_update, "NOT_UPDATING");
    assert_eq!(sim.route("e"), None);
    let body = json!({"served_models": [{"model_name": "iris", "model_version": 2}]});
    let made = update(&mut sim, &body).expect("valid");
    assert_eq!(made.pending_config.expect("pending").config_version, 1);
    sim.until("serves", 30, |sim| sim.update_state("e") == "NOT_UPDATING");
}

#[test]
fn an_endpoint_too_large_for_the_store_is_refused_when_it_is_made() {
    let entities: Vec<Value> = (0..10)
        .map(|i| {
            json!({"name": format!("e{i}"), "entity_name": "iris", "entity_version": 1,
                   "environment_vars": {"X": "x".repeat(2000)}})
        })
        .collect();
    let body = json!({"name": "e", "config": {
        "served_entities": entities,
        "traffic_config": {"routes": [{"served_entity_name": "e0", "traffic_percentage": 100}]},
    }});
    let refused = create(&mut cluster(), &body).expect_err("too large");
    assert_eq!(refused.status, 413, "{refused}");
}

#[test]
fn the_answers_have_the_vendors_shape() {
    let mut sim = cluster();
    let body = json!({
        "name": "e", "description": "flowers", "tags": [{"key": "team"}],
        "config": {"served_entities": [
            {"entity_name": "a.b.flower", "entity_version": 1, "workload_size": "Small",
             "stokehold": {"target_concurrency": 4}}
        ]},
    });
    create(&mut sim, &body).expect("valid");
    insta::assert_snapshot!("pending", pretty(&sim.get("e")));
    sim.until("serves", 30, |sim| sim.update_state("e") == "NOT_UPDATING");
    insta::assert_snapshot!("ready", pretty(&sim.get("e")));
    insta::assert_snapshot!("list", pretty(&sim.core.list_endpoints()));
    sim.steps(5);
    insta::assert_snapshot!(
        "described",
        pretty(&sim.core.describe("e").expect("exists").replicas)
    );
    let decisions = sim.core.describe("e").expect("exists").decisions;
    let [decision] = &decisions[..] else {
        panic!("one entity: {decisions:?}");
    };
    assert_eq!(
        (decision.desired_replicas, decision.ready_replicas),
        (1, 1),
        "{decision:?}"
    );
    assert_eq!(decision.demand, Some(0.0));
    assert_eq!(
        (decision.target_concurrency, decision.target_origin),
        (4, TargetOrigin::Pinned)
    );
    insta::assert_snapshot!("nodes", pretty(&sim.core.nodes()));
    let node = shared::ids::NodeName::parse("n1").expect("valid");
    insta::assert_debug_snapshot!("plan", sim.core.plan_for(&node).expect("reported"));
    insta::assert_debug_snapshot!("routes", sim.core.routes());
}

/// JSON as people read it.
fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("serialises")
}

#[test]
fn a_config_may_be_sent_back_as_it_was_answered() {
    let mut sim = cluster();
    create(&mut sim, &with_entity(json!({}))).expect("created");
    sim.steps(10);
    let answered = serde_json::to_value(sim.get("e").config).expect("JSON");
    assert_eq!(answered["served_entities"][0]["model_name"], "iris");
    let updated = update(&mut sim, &answered).expect("accepted");
    let pending = updated.pending_config.or(updated.config).expect("a config");
    assert_eq!(pending.config_version, 2);

    let mut contrary = answered;
    contrary["served_models"] = json!([]);
    contrary["served_entities"][0]["model_name"] = json!("other");
    sim.steps(10);
    let refused = update(&mut sim, &contrary).expect_err("refused");
    assert!(
        refused.message.contains("served_entities[0].model_name: "),
        "{refused}"
    );
}
