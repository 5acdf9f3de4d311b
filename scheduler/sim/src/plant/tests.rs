use super::*;
use proptest::prelude::*;

const MINIMAL: &str = "kind = \"cpu\"\nservice_time = \"50ms\"\nknee = 6\n";

fn refused(text: &str) -> String {
    Plant::parse("p.toml", text.as_bytes())
        .expect_err("a mistake")
        .to_string()
}

#[test]
fn the_built_in_plants_are_files_like_any_other() {
    for (name, text) in BUILT_IN {
        let plant = Plant::parse(name, text.as_bytes()).expect("valid");
        assert_eq!(Some(plant), Plant::built_in(name));
    }
    let knee = |name| Plant::built_in(name).expect("there").best_point();
    assert_eq!((knee("cpu"), knee("gpu"), knee("io")), (6.0, 40.0, 200.0));
    assert_eq!(Plant::built_in("tpu"), None);
}

#[test]
fn what_is_not_said_has_a_default() {
    let plant = Plant::parse("p.toml", MINIMAL.as_bytes()).expect("valid");
    assert_eq!(plant.startup.mean_s, 10.0);
    assert_eq!((plant.queue, plant.hard_limit), (1000.0, None));
    assert_eq!(
        plant.resources(plant.curve(Duration::ZERO), 6.0, 3.0).cpu,
        None
    );
}

#[test]
fn a_mistake_names_its_line_what_is_wrong_and_what_was_expected() {
    let with = |from: &str, to: &str| MINIMAL.replace(from, to);
    for (text, expected) in [
        (
            with("knee = 6", "knee = 0"),
            "p.toml:3: knee is 0: expected a number above 0",
        ),
        (
            with("knee = 6", "knee = nan"),
            "p.toml:3: knee is NaN: expected a number above 0",
        ),
        (
            with("knee = 6", ""),
            "p.toml:1: knee is missing: a plant of kind cpu needs it",
        ),
        (
            with("50ms", "0ms"),
            "p.toml:2: service_time is 0: expected a span of time above 0, such as \"50ms\"",
        ),
        (
            with("cpu", "usl"),
            "p.toml:3: a plant of kind usl has no knee",
        ),
        (
            format!("{MINIMAL}[noise]\nservice = -1\n"),
            "p.toml:5: noise.service is -1: expected 0 to 3",
        ),
        (
            format!("{MINIMAL}beyond_hard_limit = \"refuse\"\n"),
            "p.toml:4: beyond_hard_limit without a hard_limit: expected a hard_limit beside it",
        ),
        (
            format!("{MINIMAL}[[changes]]\nat = \"0s\"\n"),
            "p.toml:5: a change must lie after the one before it and after the start: expected a \
             later `at`",
        ),
        (
            format!(
                "{MINIMAL}[[changes]]\nat = \"5min\"\n\n[[changes]]\nat = \"9min\"\nknee = 0\n"
            ),
            "p.toml:9: knee is 0: expected a number above 0",
        ),
    ] {
        assert_eq!(refused(&text), expected);
    }
}

#[test]
fn an_unknown_key_and_a_wrong_type_are_refused_with_their_line() {
    let unknown = refused(&format!("{MINIMAL}nee = 3\n"));
    assert!(
        unknown.starts_with("p.toml:4: unknown field `nee`"),
        "{unknown}"
    );
    let typed = refused(&MINIMAL.replace("knee = 6", "knee = \"six\""));
    assert!(
        typed.starts_with("p.toml:3: invalid type: string"),
        "{typed}"
    );
    let span = refused(&MINIMAL.replace("50ms", "50"));
    assert!(
        span.starts_with("p.toml:2: \"50\" is not a span of time"),
        "{span}"
    );
    assert!(refused("kind = ").starts_with("p.toml:1: "));
}

#[test]
fn the_knee_moves_at_its_time_and_what_is_not_said_stays() {
    let text = format!("{MINIMAL}[[changes]]\nat = \"10min\"\nknee = 3\n");
    let plant = Plant::parse("p.toml", text.as_bytes()).expect("valid");
    let at = |seconds| plant.best_point_at(Duration::from_secs(seconds));
    assert_eq!((at(0), at(599), at(600), at(9999)), (6.0, 6.0, 3.0, 3.0));
    assert_eq!(plant.curve(Duration::from_secs(600)).time_s(1.0), 0.05);
}

#[test]
fn beyond_the_hard_limit_requests_wait_inside() {
    let text = format!("{MINIMAL}hard_limit = 4\n");
    let plant = Plant::parse("p.toml", text.as_bytes()).expect("valid");
    let curve = *plant.curve(Duration::ZERO);
    assert_eq!(plant.best_point(), 4.0);
    assert_eq!(plant.time_s(&curve, 8.0), 0.1);
    assert_eq!(plant.throughput(&curve, 8.0), plant.throughput(&curve, 4.0));
}

#[test]
fn a_resource_follows_what_its_file_says() {
    let plant = Plant::built_in("cpu").expect("there");
    let curve = *plant.curve(Duration::ZERO);
    let at = |c| plant.resources(&curve, 6.0, c);
    assert_eq!(at(0.0).cpu, Some(0.02));
    assert!((at(3.0).cpu.expect("known") - 0.5).abs() < 1e-9);
    assert_eq!(
        at(12.0).cpu,
        Some(0.98),
        "no more work is done than at the knee"
    );
    assert_eq!(at(6.0).pressure, Some(0.01), "nobody waits for a core");
    assert!(at(12.0).pressure > at(7.0).pressure);
    assert_eq!(at(6.0).gpu_sm, None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Plant::parse("p.toml", &bytes);
    }

    #[test]
    fn any_numbers_are_read_or_refused(
        kind in prop::sample::select(vec!["cpu", "gpu", "io", "usl", "flat-then-linear"]),
        keys in proptest::collection::vec(
            (prop::sample::select(vec!["knee", "slope", "contention", "coherency", "queue", "hard_limit"]),
             any::<f64>()), 0..6),
        c in 0.0..1e6,
    ) {
        let mut text = format!("kind = \"{kind}\"\nservice_time = \"50ms\"\n");
        for (key, value) in keys {
            text += &format!("{key} = {value:?}\n");
        }
        if let Ok(plant) = Plant::parse("p.toml", text.as_bytes()) {
            let curve = *plant.curve(Duration::ZERO);
            prop_assert!(plant.best_point() >= 1.0);
            prop_assert!(plant.time_s(&curve, c).is_finite());
            prop_assert!(plant.time_s(&curve, c) >= plant.time_s(&curve, 1.0));
        }
    }
}
