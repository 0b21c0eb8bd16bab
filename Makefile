# Thin: every target is one or two commands. `make demo` and `make test` do all their own set-up, as root on Debian 12 with a Rust toolchain.

CARGO ?= cargo

.PHONY: demo demo-clean demo-docker test soak bench lint setup build

setup:
	scripts/setup

build: setup
	$(CARGO) build --workspace --bins

demo: build
	target/debug/firebreak-demo

demo-clean: build
	target/debug/firebreak-demo --clean

demo-docker: build
	target/debug/firebreak-demo-docker

test: build
	scripts/test

soak: build
	FIREBREAK_SCALE=full scripts/test

bench: setup
	$(CARGO) build --release --workspace --bins
	target/release/firebreak-bench

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) test -q -p firebreak-tests --test architecture
	scripts/cargo-deny check bans licenses sources
