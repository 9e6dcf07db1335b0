# `make help` lists the targets.
GO ?= go
export CGO_ENABLED = 0
# The race detector is the one thing that needs a C compiler; without one the
# tests run all the same.
CC ?= cc
RACE := $(if $(shell command -v $(CC)),-race)
# With cgo the torrent engine would take in SQLite, which the programs, built
# without cgo, never have: minutes of compiling C.
RACE_TAGS := $(if $(RACE),-tags nosqlite)
# The build that the demo distributes.
BUILD := testdata/builds/hello-1.0.0.zip
# Counted, not timed: when the time is up while an input is being tried, go test
# calls that a failure ("context deadline exceeded").
FUZZTIME ?= 5000x

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/agent, bin/seeder and bin/landfall-dev
	$(GO) build -trimpath -o bin/ ./cmd/...

.PHONY: demo
demo: build ## run all of it on this machine and distribute a build (ARGS=--exit ends by itself)
	@bin/landfall-dev --publish $(BUILD) $(ARGS)

.PHONY: dev
dev: build ## run all of it on this machine, publish nothing
	@bin/landfall-dev $(ARGS)

.PHONY: test
test: build ## all tests, under the race detector where there is a C compiler, and a short run of every fuzz target
	@$(if $(RACE),,echo 'no C compiler: without the race detector')
	CGO_ENABLED=$(if $(RACE),1,0) $(GO) test $(RACE) $(RACE_TAGS) -timeout 25m ./...
	@$(MAKE) --no-print-directory fuzz

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@for file in $$(grep -rl --include='*_test.go' '^func Fuzz' internal seeder agent | sort); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' $$file); do \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file) || exit 1; \
		done; \
	done

# A round takes some ten seconds. RUN=. takes every test of the package instead
# of the random schedules alone, and LONG=1 every case of each.
ROUNDS ?= 50
RUN ?= ^TestChaos$$
CHAOS = $(GO) test ./internal/chaos -count=1 -timeout 24h -v -chaos.seed $(or $(SEED),0)
.PHONY: chaos
chaos: ## kill, cut off and starve members at random (ROUNDS=200; SEED=… repeats a run; root for network faults)
	$(CHAOS) -run '$(RUN)' -chaos.rounds $(ROUNDS) $(if $(LONG),-chaos.long)

DURATION ?= 30m
.PHONY: soak
soak: ## builds and a few faults for DURATION; fails when memory, goroutines or open files grow (samples in bin/soak.csv)
	@mkdir -p bin
	$(CHAOS) -run '^TestSoak$$' -chaos.soak $(DURATION) -chaos.csv '$(CURDIR)/bin/soak.csv'

# The packages with hot paths: what is pulled and hashed, handed out, landed,
# announced.
HOT := ./internal/manifest ./internal/handout ./internal/landing ./internal/announce ./internal/source
BENCH = $(GO) test -run '^$$' -bench . -benchmem $(HOT)

.PHONY: bench
bench: ## Go benchmarks of the hot paths
	$(BENCH)

# BASE is the commit to compare with, COUNT how often each benchmark runs.
BASE ?= HEAD~1
COUNT ?= 6
.PHONY: bench-compare
bench-compare: ## the same, beside those of the commit before (BASE=COMMIT for another), through benchstat
	@set -e; tmp=$$(mktemp -d); trap 'git worktree remove --force "$$tmp/base"; rm -rf "$$tmp"' EXIT; \
	git worktree add --quiet --detach "$$tmp/base" $(BASE); \
	(cd "$$tmp/base" && $(BENCH) -benchtime 0.3s -count $(COUNT)) >"$$tmp/base.txt"; \
	$(BENCH) -benchtime 0.3s -count $(COUNT) >"$$tmp/now.txt"; \
	cd "$$tmp" && $(GO) -C "$(CURDIR)" tool benchstat "$$tmp/base.txt" "$$tmp/now.txt"

.PHONY: bench-page
bench-page: ## what the page costs browser and seeder, with 500 executions and 64 agents (Chromium)
	$(GO) test ./internal/browser -count=1 -timeout 30m -v -run '^TestLoad$$' -browser.load

.PHONY: bench-wan
bench-wan: build ## time to landed everywhere over shaped links, beside other systems (root; FULL=1 for all cells, ARGS=--help for more)
	$(GO) build -o bin/ ./bench
	bin/bench wan $(if $(FULL),--full) $(ARGS)

# HOSTS are the sizes of the region to simulate.
.PHONY: bench-fleet
bench-fleet: ## how a region's hosts get a build, simulated: 1,000, 10,000 and 30,000 of them (HOSTS=N for others, ARGS=--help for more)
	$(GO) build -o bin/ ./bench
	for hosts in $(or $(HOSTS),1000 10000 30000); do bin/bench fleet --hosts $$hosts $(ARGS) || exit 1; done

.PHONY: bench-restart
bench-restart: build ## how soon a seeder that was killed reaches its agents again, at the old address and a new one (root)
	$(GO) build -o bin/ ./bench
	unshare -n sh -c 'ip link set lo up && exec bin/bench restart $(ARGS)'

.PHONY: bench-hosts
bench-hosts: build ## a build to 100 hosts, a roll-back of them, a host's memory, 5,000 idle streams (bin/bench hosts --help)
	$(GO) build -o bin/ ./bench
	bin/bench hosts
	bin/bench rollback
	bin/bench host-memory
	bin/bench streams
	bin/bench streams --agents 3

# Small builds are mostly small writes: the disk is not to be measured.
SHM := $(wildcard /dev/shm)
.PHONY: bench-local
bench-local: build ## speed of one engine, peak memory, small builds, on loopback
	$(GO) build -o bin/ ./bench
	bin/bench one-to-one
	bin/bench memory
	bin/bench small $(if $(SHM),--dir $(SHM))

.PHONY: man
man: build ## write the man pages to bin/man
	@mkdir -p bin/man
	@for name in agent landfall-dev seeder; do bin/$$name man >bin/man/$$name.1; done

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, licences
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt on these files'; exit 1; }
	@! git grep -n 'filepath\.Glob' -- '*.go' ':!*_test.go' ':!internal/private' || { echo 'use private.Glob: a directory may have [ in its name'; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) run ./internal/notice -check NOTICE

.PHONY: notice
notice: ## write NOTICE: what the programs are made of
	$(GO) run ./internal/notice >NOTICE.new
	mv NOTICE.new NOTICE

# Without the tables for debuggers, and what the torrent engine could keep a database with.
RELEASE := -trimpath -ldflags '-s -w' -tags 'noboltdb nosqlite'
.PHONY: release
release: ## bin/release: the programs as they are shipped, equal wherever they are built, with licences and what they are made of (CycloneDX)
	@rm -rf bin/release && mkdir -p bin/release
	$(GO) build $(RELEASE) -o bin/release/ ./cmd/...
	$(GO) run ./internal/notice -texts >bin/release/LICENSES.txt
	cp LICENSE NOTICE bin/release/
	@for name in agent landfall-dev seeder; do \
		$(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -output bin/release/$$name.cdx.json bin/release/$$name || exit 1; \
	done
	cd bin/release && sha256sum * >SHA256SUMS

.PHONY: reproducible
reproducible: ## build the programs of a release in two places, and compare
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	for place in one another/one; do \
		git clone --quiet . "$$tmp/$$place"; \
		(cd "$$tmp/$$place" && $(GO) build $(RELEASE) -o bin/ ./cmd/... && cd bin && sha256sum *) >"$$tmp/$$(echo $$place | tr / -).sums"; \
	done; \
	cat "$$tmp/one.sums"; cmp "$$tmp/one.sums" "$$tmp/another-one.sums"

.PHONY: vulnerabilities
vulnerabilities: ## look for known vulnerabilities in what is used, where https://vuln.go.dev can be reached
	@if curl --silent --fail --max-time 10 --output /dev/null https://vuln.go.dev/index/db.json; \
	then $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...; \
	else echo 'not looked for vulnerabilities: https://vuln.go.dev cannot be reached'; fi

.PHONY: images
images: ## build the container images that docker-compose.yml runs, with keys and certificates
	deploy/images.sh

.PHONY: clean
clean: ## remove what was built, and the demo's data
	rm -rf bin .landfall
