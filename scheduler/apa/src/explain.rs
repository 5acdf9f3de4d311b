//! A decision told to people: the rule that fired, the numbers it saw, and what would change it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Both axes and the pool explain themselves in this form; `stokehold explain` prints it, the
/// simulator's `why` is its [`Explanation::short`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The rule's name, from a small fixed set (`hold`, `max-replicas`): also a metric's label.
    pub rule: Cow<'static, str>,
    /// Why, in one sentence with the numbers in it.
    pub because: String,
    pub inputs: Vec<Input>,
    /// What would have to be different for another decision, in one sentence.
    pub would_change: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    pub name: Cow<'static, str>,
    /// `None`: not known.
    pub value: Option<f64>,
    /// `requests`, `requests/s`, `s`, `ms`, `replicas`, `ratio`.
    pub unit: Cow<'static, str>,
}

impl Input {
    pub(crate) fn new(
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Option<f64>>,
        unit: &'static str,
    ) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
            unit: unit.into(),
        }
    }
}

impl Explanation {
    pub fn short(&self) -> String {
        format!("{}: {}", self.rule, self.because)
    }
}
