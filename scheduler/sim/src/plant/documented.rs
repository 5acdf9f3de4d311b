//! `docs/simulator.md` shows plants and a recording: they are what is read here.

use super::{BUILT_IN, Plant};
use crate::record::Recording;
use crate::trace::{self, Fill};

const DOCUMENT: &str = include_str!("../../../../docs/simulator.md");

/// The contents of the blocks in a language, from a heading on.
fn blocks(language: &str, heading: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let (_, from) = DOCUMENT.split_once(heading).expect(heading);
    let after = from.split(fence.as_str()).skip(1);
    after
        .map(|rest| rest.split("```").next().expect("a block"))
        .collect()
}

#[test]
fn every_plant_in_the_document_is_read_and_the_built_in_ones_stand_there_as_they_are() {
    let shown = blocks("toml", "\n## Plants\n");
    for text in &shown {
        Plant::parse("simulator.md", text.as_bytes()).expect(text);
    }
    for (name, text) in BUILT_IN {
        assert!(shown.contains(&text), "{name}");
    }
}

#[test]
fn the_trace_and_the_recording_in_the_document_are_read() {
    let trace = blocks("csv", "\n## Traces\n")[0];
    trace::parse("simulator.md", trace.as_bytes(), Fill::No).expect("a trace");
    let recording = blocks("json", "\n### A plant from a recorded run\n")[0];
    Recording::read("simulator.md", recording.as_bytes()).expect("a recording");
}
