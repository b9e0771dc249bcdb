# make demo   the main job on real parts: log in, query a private PostgreSQL, read the record (STAY=1 keeps the plane)
# make test   every test, the end-to-end ones with real programs included
# make torture KILLS=200   kill -9 of each program at random moments under load; SEED=N has the same run again
# make moves  1 GiB by scp, sftp, rsync and git, each way, through recorded and relayed SSH services (BYTES=N for another size)
# make lint   formatting, clippy, dependency rules
# make fuzz   10 minutes of libFuzzer on each parser of what strangers send (TARGET=control SECONDS=60)
# make scale, make half-open   1,000 agents, 10,000 users, and locks; 10,000 half-open connections: add to what make bench writes
# make bench  this path beside its peers; writes docs/performance.md and tests/bench/results.json (BENCH="--only idle,rtt" a part of it)
# make deb    Debian packages of a release build, in target/deb
# make package-test  the packages on four clean machines: docs/operate.md followed to the letter (as root; some minutes); BEFORE=FOLDER upgrades its packages
# make helm-test, make monitoring-test  the chart and what its images hold; the alert rules through promtool
#
# Each installs what it needs on Debian (printing the line first; as root, or with YES=1). One build profile serves all but bench, fuzz and deb.

SHELL := /bin/bash
CARGO ?= cargo
BIN := $(CURDIR)/target/debug
RELEASE := $(CURDIR)/target/release
# The path's programs and the harness: without what fuzzing and tests need, linking takes half the time.
BUILD_BENCH := $(CARGO) build --release --workspace --locked $(addprefix --bin ,iap-auth iap-proxy iap-agent iapctl iap-bench)
RUN_BENCH := $(RELEASE)/iap-bench --bin $(RELEASE) --results tests/bench/results.json --report docs/performance.md

.PHONY: demo test torture moves lint bench build

demo:
	@tests/scripts/need cc unshare postgresql psql ssh sshd
	$(CARGO) build --workspace --bins --locked
	@tests/scripts/demo $(BIN)

test: build tests/oidc/node_modules clients
	$(CARGO) test --workspace --locked --no-fail-fast

torture: build
	IAP_TORTURE_KILLS=$(or $(KILLS),200) IAP_TORTURE_SEED=$(SEED) IAP_TORTURE_BACK_SECONDS_MAX=10 \
	  $(CARGO) test --workspace --locked --test all torture:: -- --nocapture

moves: build
	IAP_E2E_MOVE_BYTES=$(or $(BYTES),1073741824) $(CARGO) test --workspace --locked --test all moves:: -- --nocapture --test-threads=1

# All targets at once, so that programs and tests share one resolution of features and nothing is built twice.
build:
	@tests/scripts/need cc openssl unshare postgresql psql node nginx haproxy stunnel ssh sshd git vim systemd-analyze ip fish man rsync python go javac pgjdbc
	$(CARGO) build --workspace --all-targets --locked

tests/oidc/node_modules: tests/oidc/package.json tests/oidc/package-lock.json
	cd tests/oidc && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# Drivers of PostgreSQL that the end-to-end tests put to work.
.PHONY: clients
clients: tests/clients/node/node_modules target/clients/venv/installed target/clients/pgx target/clients/Job.class

tests/clients/node/node_modules: tests/clients/node/package.json tests/clients/node/package-lock.json
	cd tests/clients/node && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

target/clients/venv/installed: tests/clients/python/requirements.txt
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

target/clients/pgx: tests/clients/go/main.go tests/clients/go/go.mod tests/clients/go/go.sum
	cd tests/clients/go && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -o $(CURDIR)/$@ .

target/clients/Job.class: tests/clients/java/Job.java
	javac -cp /usr/share/java/postgresql.jar -d $(@D) $<

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level error check bans licenses sources; \
	 else echo "cargo-deny is not installed: 'cargo install cargo-deny' to check bans, licences and sources"; fi

bench:
	@tests/scripts/need cc openssl nginx haproxy stunnel sshd ssh unshare postgresql psql
	$(BUILD_BENCH)
	$(RUN_BENCH) $(BENCH)

.PHONY: fuzz
fuzz:
	@tests/scripts/need cc
	SECONDS_EACH=$(or $(SECONDS),600) CARGO=$(CARGO) tests/scripts/fuzz $(TARGET)

.PHONY: deb
deb:
	@tests/scripts/need cc objdump
	$(CARGO) build --release --workspace --bins --locked
	@deploy/debian/build $(CURDIR)/target/release target/deb

.PHONY: package-test
package-test: tests/oidc/node_modules
	@tests/scripts/need cc objdump node openssl debootstrap systemd-nspawn ip
	$(CARGO) build --workspace --bins --locked
	@tests/scripts/package-test $(BIN) $(BEFORE)

# The alert rules through promtool, with their unit tests.
.PHONY: monitoring-test
monitoring-test:
	@tests/scripts/monitoring-test

# Chart and images: lint, render, the configuration read by the programs, and, as root, auth server and proxy run in them.
.PHONY: helm-test
helm-test:
	@tests/scripts/need cc objdump ip unshare
	$(CARGO) build --workspace --bins --locked
	@tests/scripts/helm-test $(BIN)

.PHONY: scale
scale:
	@tests/scripts/need cc openssl
	$(BUILD_BENCH)
	$(RUN_BENCH) --only scale

.PHONY: half-open
half-open:
	@tests/scripts/need cc openssl
	$(BUILD_BENCH)
	$(RUN_BENCH) --only half-open
