# Everything a developer runs. `make test` is what continuous integration runs;
# `make test-full` runs the long forms with the full numbers.

export CGO_ENABLED = 0
# As what is released, so that the programs that tests start are compiled once.
export GOFLAGS = -trimpath

# What the tests start, by the Debian package that holds it.
TOOLS    = openssl:openssl ssh-keygen:openssh-client curl:curl nmap:nmap \
           swtpm:swtpm swtpm_setup:swtpm-tools \
           pg_lsclusters:postgresql \
           nginx:nginx haproxy:haproxy \
           spin:spin \
           ip:iproute2 gcc:build-essential \
           node:nodejs npm:npm chromium:chromium firefox-esr:firefox-esr
# Modules of the system's Python, by their Debian package.
MODULES  = httpx:python3-httpx
# What only the long forms start: a root of Debian 13 with wine, arm64, and WebKitGTK.
TOOLS_FULL = debootstrap:debootstrap unshare:util-linux qemu-aarch64-static:qemu-user-static \
           WebKitWebDriver:webkit2gtk-driver xvfb-run:xvfb xauth:xauth
# What takes longest goes first, so that it does not run alone at the end. Tests that are
# parallel wait for most of their time, so more of them run than there are processors.
ALL      = ./internal/systest ./cmd/... ./internal/cli/devcmd ./...
# nitro and nvidia keep nothing between calls, so the race detector has nothing to see there.
RACE     = ./internal/systest ./internal/... ./attest ./attest/soft ./attest/dcap ./attest/snp ./attest/tpm ./identity ./policy/... ./unit ./client
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0

.PHONY: build test test-full oracles race lint count tools tools-full bench fuzz fuzz-ts clean

# What is released erases keys from memory: docs/explanation/memory.md.
build:
	GOEXPERIMENT=runtimesecret go build -trimpath -o bin/ ./cmd/cohort ./examples/...

test:
	@$(call part,tools,$(MAKE) --no-print-directory tools)
	@$(call part,lint,$(MAKE) --no-print-directory lint)
	@$(call part,tests,go test -parallel 4 -timeout 14m $(ALL))
	@$(call part,oracles,$(MAKE) --no-print-directory oracles)
	@$(call part,race,$(MAKE) --no-print-directory race)

# part runs a part of a target and prints how long it took.
part = begin=$$(date +%s); $(2); status=$$?; echo "part $(1): $$(($$(date +%s) - begin)) s"; exit $$status

test-full: tools-full lint
	COHORT_FULL=1 go test -timeout 3h -count=1 -p 1 ./...
	$(MAKE) oracles
	cd interop/evidence && COHORT_FULL=1 COHORT_VECTORS="$${COHORT_VECTORS:-$(CURDIR)/../shared/vectors}" go test -timeout 60m -count=1 ./...
	cd interop/ohttp && go test -timeout 10m -count=1 ./...
	$(MAKE) fuzz-ts
	$(MAKE) race

# What tests need other people's code for is a module of its own.
oracles:
	cd interop/oracles && go test -timeout 5m ./...

# The race detector needs cgo and a C compiler; the product does not.
race:
	CGO_ENABLED=1 go test -race -short -parallel 4 -timeout 14m $(RACE)

lint:
	@test -z "$$(gofmt -l .)" || { echo "not gofmt-ed:"; gofmt -l .; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

# What the house is measured by: sizes, names, arrows between files.
count:
	@go test -count=1 . -run 'TestPackageSize|TestShortNames|TestSharedNames|TestExportedNames|TestRefusalsShowValues|TestWordsInNames|TestFilesInOrder' -v | sed -n 's/.*_test.go:[0-9]*: \(.*: [0-9]*, at most.*\)/\1/p'

# Installs what is missing; says so and goes on where it may not install.
tools:
	@missing=""; for t in $(TOOLS); do command -v $${t%%:*} >/dev/null || missing="$$missing $${t##*:}"; done; \
	for m in $(MODULES); do /usr/bin/python3 -c "import $${m%%:*}" 2>/dev/null || missing="$$missing $${m##*:}"; done; \
	test -z "$$missing" && exit 0; echo "installing$$missing"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	@test ts/node_modules/.package-lock.json -nt ts/package-lock.json || (cd ts && npm ci --ignore-scripts --silent)

tools-full: tools
	@$(MAKE) --no-print-directory tools TOOLS="$(TOOLS_FULL)" MODULES=

# What things cost beside their limits, in rounds whose medians are printed; the
# goals are in docs/performance.md. nginx and etcd are rivals in it. BENCH_PROFILE=F
# keeps the CPU profile of the process that serves.
ROUNDS ?= 15
bench:
	@$(MAKE) --no-print-directory tools TOOLS="etcd:etcd-server nginx:nginx" MODULES=
	@{ go test -run '^$$' -bench 'Appraise|Proxy|JointRisk' -benchtime $(ROUNDS)x ./attest/... ./internal/agent ./internal/dev/check/groupcheck; \
	  go test -run '^$$' -bench . -benchtime $(ROUNDS)x ./bench; \
	  go test -run '^$$' -bench SessionMemory -benchtime 1x ./internal/channel; } | awk -f bench/ratios.awk

# Each fuzz target for a short while.
FUZZTIME ?= 10s
fuzz:
	@go list ./... | while read -r p; do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

# The parsers of the TypeScript client: 10,000,000 inputs each, or as many as take
# FUZZ_SECONDS. It prints each parser's seed and count; COHORT_FUZZ_SEED=N repeats a run.
FUZZ_SECONDS ?= 300
fuzz-ts: tools
	cd ts && npm run --silent build && npm run --silent build-tests && COHORT_FUZZ_SECONDS=$(FUZZ_SECONDS) \
	  node --test --test-concurrency=2 --test-name-pattern='^fuzz:' --test-reporter=tap $$(grep -l 'fuzz(' build/test/*.test.js) | \
	  awk '/^# Subtest: fuzz|^# .*inputs|not ok|COHORT_FUZZ_SEED=.*input |^# (pass|fail) /; /^# fail 0$$/ { passed = 1 } END { exit !passed }'

clean:
	rm -rf bin dist
