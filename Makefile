SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

GO ?= go
# Tests run on the server of TEST_DATABASE_URL, all else on that of DATABASE_URL; without one, on a throwaway server.
RUN := scripts/timescaledb.sh run --
# Servers of every version to watch in tests, unpacked once.
SERVERS := TEST_POSTGRES_ROOT=$${TEST_POSTGRES_ROOT:-$$(scripts/postgres.sh fetch)}; export TEST_POSTGRES_ROOT
# Each test binary has servers and pools of its own, so their number is bounded, not only that of the cores.
JOBS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
TESTFLAGS ?=
# Go stamps the version itself, from git; where git knows none it must not try, or the build ends there.
BUILDFLAGS := -trimpath -buildvcs=$(shell git rev-parse -q --verify HEAD >/dev/null 2>&1 && echo true || echo false)
# Without cgo a program needs nothing of the host that runs it, not even its libc.
BUILD := CGO_ENABLED=0 $(GO) build $(BUILDFLAGS)

LINT_VERSION := $(shell sed -n 's|^.*github.com/golangci/golangci-lint/v2 \(v[^ ]*\).*|\1|p' tools/golangci-lint/go.mod)
LINT := .cache/bin/golangci-lint-$(LINT_VERSION)
export GOLANGCI_LINT_CACHE := $(CURDIR)/.cache/golangci-lint

.PHONY: help
help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

.PHONY: build
build: go ## Build all programs into bin/.
	@mkdir -p bin
	@$(BUILD) -o bin/ ./cmd/...

.PHONY: demo
demo: go ## Run the whole system on this host; Ctrl-C ends it. DATABASE_URL: use that TimescaleDB.
	@mkdir -p bin
	@$(BUILD) -o bin/ ./cmd/pganalytics ./cmd/collector >&2
	@exec $(if $(DATABASE_URL),,$(RUN)) bin/pganalytics demo $(ARGS)

.PHONY: test
test: check-generated vet lint test-go ## Run all checks and tests. TEST_DATABASE_URL: use that TimescaleDB.

.PHONY: test-go
test-go: go ## Run the Go tests alone. TESTFLAGS: more flags for go test.
	@$(SERVERS); CI=true exec $(if $(TEST_DATABASE_URL),,$(RUN)) \
		$(GO) test -race -count=1 -p $(JOBS) -parallel 4 -timeout 10m $(TESTFLAGS) ./...

.PHONY: chaos
chaos: go ## Break every part for real and look for what is lost or stored twice. TEST_DATABASE_URL: use that TimescaleDB.
	@CI=true CHAOS=full exec $(if $(TEST_DATABASE_URL),,$(RUN)) \
		$(GO) test -race -count=1 -parallel 2 -timeout 30m -v $(TESTFLAGS) ./pkg/internal/chaos

.PHONY: soak
soak: go ## Take a collector's network away for ten minutes, kill its gateway, and look for what is lost. SOAK=2m: shorter.
	@CI=true SOAK=$(or $(SOAK),10m) exec $(if $(TEST_DATABASE_URL),,$(RUN)) \
		$(GO) test -race -count=1 -timeout 60m -v -run '^TestNothingIsLostWhileTheNetworkIsAway' $(TESTFLAGS) ./pkg/internal/e2e

.PHONY: watch
watch: go ## Watch servers of every version that can be had, as few are with all tests; minutes.
	@$(SERVERS); export CI=true WATCH=all; \
	watch() { $(if $(TEST_DATABASE_URL),,$(RUN)) $(GO) test -race -count=1 -p 1 -parallel 2 -timeout 60m $(TESTFLAGS) "$$@"; }; \
	watch ./pkg/internal/testpg ./pkg/catalogue; \
	watch -v -run '^(TestEveryFamilyOf|TestACollectorRidesOut)' ./pkg/internal/e2e

.PHONY: drill
drill: go ## Lose a database for real, restore a backup, replay, and look up every row. ARGS="-prove": show that it can fail.
	@mkdir -p bin
	@$(BUILD) -o bin/ ./cmd/pganalytics ./loadtest/drill >&2
	@exec bin/drill $(ARGS)

.PHONY: bench
bench: go ## Measure push to commit against a plain COPY. DATABASE_URL: use that TimescaleDB; ARGS: see ARGS=-h.
	@$(call BENCH,line)

.PHONY: bench-drain
bench-drain: go ## Measure how ingesters drain a backlog. ARGS="-only batch": only those scenarios.
	@$(call BENCH,drain)

.PHONY: bench-fresh
bench-fresh: go ## Measure how soon rows are visible, and pushes against bare publishes.
	@$(call BENCH,fresh)

.PHONY: bench-skip
bench-skip: go ## Measure what batches cost that are stored already.
	@$(call BENCH,skip)

.PHONY: bench-replay
bench-replay: go ## Measure a replay against live batches.
	@$(call BENCH,replay)

.PHONY: bench-memory
bench-memory: go ## Measure the memory of gateway and ingester with 500 collectors.
	@$(call BENCH,memory)

.PHONY: bench-collector
bench-collector: go ## Measure the collector with ten servers: its memory, and what it costs them.
	@$(call BENCH,collector)

define BENCH
mkdir -p bin; \
$(BUILD) -o bin/ ./cmd/... ./loadtest/bench >&2; \
exec $(if $(DATABASE_URL),,$(RUN)) bin/bench $(1) $(ARGS)
endef

.PHONY: vet
vet: go ## Run go vet.
	@$(GO) vet ./...

.PHONY: lint
lint: $(LINT) ## Run golangci-lint.
	@$(LINT) run

.PHONY: fmt
fmt: $(LINT) ## Format all Go code.
	@$(LINT) fmt

.PHONY: generate
generate: go ## Regenerate code and documentation that are generated.
	@$(GO) run -C tools/protoc . $(CURDIR)/schemas/batch.proto $(CURDIR)
	@$(GO) test ./pkg/authsvc -count=1 -run '^TestOpenAPIIsWhatTheRoutesSay$$' -update >/dev/null
	@$(GO) test ./pkg/catalogue/manual -count=1 -update >/dev/null

.PHONY: check-generated
check-generated: go ## Check that what is generated is up to date.
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(GO) run -C tools/protoc . $(CURDIR)/schemas/batch.proto "$$fresh"; \
	(cd "$$fresh" && find . -type f) | while read -r file; do \
		diff -u "$$file" "$$fresh/$$file" || { echo "$$file is out of date: run make generate" >&2; exit 1; }; \
	done
	@$(GO) test ./pkg/catalogue/manual -count=1 >/dev/null || { echo "docs/metrics.md or docs/collector.md is out of date: run make generate" >&2; exit 1; }

.PHONY: clean
clean: ## Delete what was built. (The database packages: scripts/timescaledb.sh uninstall.)
	@rm -rf bin .cache

.PHONY: go
go:
	@command -v $(GO) >/dev/null || { echo "missing program: go, version 1.26 or later" >&2; exit 1; }

# The linters' many modules stay out of the product's go.mod.
$(LINT): tools/golangci-lint/go.mod | go
	@echo "building golangci-lint $(LINT_VERSION) (once)" >&2
	@$(GO) build -C tools/golangci-lint -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@
