# `make demo` shows the main job on a real model; `make test` runs all tests. Both set up what they
# need, clean up after themselves, and can be run again.

SHELL := /bin/bash
.DEFAULT_GOAL := help
TARGET := $(CURDIR)/target
IMAGES := $(TARGET)/images

.PHONY: help setup build images packages demo test test-system bench-apa lint fmt docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## Install what is missing (apt-get, only what is not on PATH)
	@packaging/dev/setup.sh

build: setup ## Build the programs (target/release)
	cargo build --release --locked -p stokehold-agent -p stokehold-gateway -p stokehold-logshim \
	    -p stokehold-scheduler -p stokehold-cli
	@mkdir -p $(TARGET)/share/stokehold && ln -sfn $(CURDIR)/packaging/runtimes $(TARGET)/share/stokehold/runtimes

images: setup ## Build the runtime images (target/images/*.oci.tar)
	packaging/images/build.sh all --out $(IMAGES)

packages: build ## Build .deb and .rpm of node, scheduler and CLI (target/packages)
	packaging/packages.sh

demo: build images ## A real MLflow model behind HTTPS: queried, killed at, loaded until it scales, removed
	tests/demo.sh

test: setup images ## Unit, property and end-to-end tests (as root, for containers)
	cargo test --workspace --locked

test-system: packages images ## Packages in a booted Debian: install, join, upgrade, purge (as root)
	cargo test -p stokehold-tests --features system --test packages --locked -- --nocapture

bench-apa: ## The autoscaler against its targets (TRACES=DIR: on every file there too)
	cargo bench --locked -p stokehold-sim --bench apa -- $(if $(TRACES),--traces $(abspath $(TRACES)))

lint: setup ## Formatting and clippy, as warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features stokehold-tests/system --locked -- -D warnings

fmt: ## Format the code
	cargo fmt --all

docs: ## Write the documents that are made from the code (docs/configuration.md, docs/openapi.json)
	STOKEHOLD_WRITE_DOCS=1 cargo test --locked -p stokehold-tests --test tidy -- _reference_
	STOKEHOLD_WRITE_DOCS=1 cargo test --locked -p stokehold-scheduler --test api openapi::the_checked_in

clean: ## Remove everything that was built
	cargo clean
