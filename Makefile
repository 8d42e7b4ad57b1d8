# qrbd: build, test and show. `make help` lists the targets.

GO          ?= go
BIN         ?= bin/qrbd
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
NFPM        ?= github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
FUZZTIME    ?= 10s
DB          ?= postgres

# Packages tested with the race detector: all but those that run real processes
# or whole simulations, which would only get slow by it.
PLAIN = /tests(/|$$)
UNIT  = $$($(GO) list ./... | grep -Ev '$(PLAIN)')
# First what takes long: by itself at the end it would leave a processor idle.
FIRST = /tests/(e2e|failover|pacemaker|sim|uml)$$
WHOLE = $$($(GO) list ./... | grep -E '$(FIRST)'; $(GO) list ./... | grep -E '$(PLAIN)' | grep -Ev '$(FIRST)')

.DEFAULT_GOAL := help
.PHONY: help build deb demo test check sim mutants bench bench-distance fuzz deps clean

help: ## list the targets
	@echo 'qrbd $(VERSION). Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

build: ## build the static binary bin/qrbd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./cmd/qrbd

# A version that dpkg can order: v1.2.3 is 1.2.3, 5 commits later 1.2.3+5.gabcdef0; without a
# tag 0~, the day and the commit.
DEB_VERSION ?= $(shell v=$$(git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null) && echo "$$v" | sed 's/^v//; s/-/+/; s/-/./g' || \
	git log -1 --date=format:%Y%m%d%H%M --format='0~%cd.%h')
DEB_ARCH    ?= $(shell $(GO) env GOARCH)

DEB_DIR     ?= bin/deb
DEB_OUT     ?= bin

deb: ## a Debian package, bin/qrbd_VERSION_ARCH.deb
	rm -rf '$(DEB_DIR)' && $(MAKE) --no-print-directory build BIN='$(DEB_DIR)/qrbd'
	'$(DEB_DIR)/qrbd' generate '$(DEB_DIR)'
	gzip -9n '$(DEB_DIR)/qrbd.8' && gzip -9nc CHANGELOG.md > '$(DEB_DIR)/upstream.gz'
	printf 'qrbd (%s) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- The qrbd authors <qrbd@users.noreply.github.com>  %s\n' \
		'$(DEB_VERSION)' "$$(git log -1 --format=%cD)" | gzip -9n > '$(DEB_DIR)/changelog.Debian.gz'
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) DEB_DIR='$(DEB_DIR)' DEB_VERSION='$(DEB_VERSION)' DEB_ARCH=$(DEB_ARCH) \
		$(GO) run $(NFPM) package --config deploy/debian/nfpm.yaml --packager deb --target '$(DEB_OUT)'

demo: build ## a CRM database survives the death of its host (DB=postgres or DB=mariadb; root for the whole story)
	@tests/deps.sh demo
	@$(GO) build -o bin/demo ./tests/demo
	@exec bin/demo --qrbd $(BIN) --db $(DB) $(DEMOFLAGS)

# Both halves run to the end, whichever fails first.
test: build ## the whole suite: unit packages with the race detector, then processes and simulations
	@tests/deps.sh test
	@rc=0; \
	$(GO) test -race -timeout 8m $(UNIT) || rc=1; \
	$(GO) test -timeout 14m -skip '^TestCrashPoints$$|^TestCompiles$$' $(WHOLE) || rc=1; \
	$(GO) test -timeout 14m -v -run '^TestCrashPoints$$' ./tests/sim || rc=1; \
	exit $$rc

check: ## gofmt, vet, staticcheck, import rules, short unit tests, whether every mutant compiles
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt -w is due for:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test ./tests/architecture
	$(GO) test -short $(UNIT)
	$(GO) test -run '^TestCompiles$$' ./tests/mutants

sim: ## SEEDS runs of the simulator, from SEED on (SEEDS=1 SEED=s shows the events of s; STATE=f goes on where it ended)
	$(GO) test -v -count=1 -timeout 10h ./tests/sim -run '$(if $(filter 1,$(SEEDS)),TestTrace,TestSeeds)' -args -seeds $(or $(SEEDS),1000) -seed $(or $(SEED),1) $(if $(STATE),-state $(abspath $(STATE)))

mutants: ## break the code in ways that lose data, one by one: the simulator finds each within 2000 seeds (MUTANTSFLAGS='-state f' goes on where it ended)
	$(GO) run ./tests/mutants $(MUTANTSFLAGS)

bench: build ## fio against qrbd, nbdkit and a qemu mirror in one run, as ratios
	@tests/deps.sh test
	$(GO) run ./tests/bench $(BENCHFLAGS)

bench-distance: build ## qrbd beside DRBD 8.4 over a long and lossy link, in User-Mode Linux (root)
	@tests/deps.sh test distance
	@CGO_ENABLED=0 $(GO) build -o bin/distance ./tests/distance
	bin/distance -qrbd $(BIN) $(DISTANCEFLAGS)

fuzz: ## every fuzz target for FUZZTIME (10s)
	@tests/fuzz.sh $(FUZZTIME)

deps: ## install the Debian packages that suite and demo need and that are missing
	@tests/deps.sh demo test

clean: ## remove what was built
	rm -rf bin
	$(GO) clean -testcache
