//! A router that can tell its paths, which axum's own does not.

use axum::Router;
use axum::routing::MethodRouter;

use super::Api;

#[derive(Default)]
pub(super) struct Routes {
    pub(super) router: Router<Api>,
    pub(super) paths: Vec<String>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn route(mut self, path: &str, methods: MethodRouter<Api>) -> Self {
        self.router = self.router.route(path, methods);
        self.paths.push(path.to_owned());
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.paths.extend(other.paths);
        self
    }

    pub(super) fn nest(mut self, at: &str, other: Self) -> Self {
        self.router = self.router.nest(at, other.router);
        let below = other.paths.iter().map(|path| format!("{at}{path}"));
        self.paths.extend(below);
        self
    }
}
