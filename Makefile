# qrbd: build, test and show. `make help` lists the targets.

GO          ?= go
BIN         ?= bin/qrbd
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 10s
DB          ?= postgres

# Packages tested with the race detector: all but those that run real processes
# or whole simulations, which would only get slow by it.
PLAIN = /tests(/|$$)
UNIT  = $$($(GO) list ./... | grep -Ev '$(PLAIN)')
WHOLE = $$($(GO) list ./... | grep -E '$(PLAIN)')

.DEFAULT_GOAL := help
.PHONY: help build demo test check sim mutants bench fuzz deps clean

help: ## list the targets
	@echo 'qrbd $(VERSION). Targets:'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

build: ## build the static binary bin/qrbd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN) ./cmd/qrbd

demo: build ## a CRM database survives the death of its host (DB=postgres or DB=mariadb; root for the whole story)
	@tests/deps.sh demo
	@$(GO) build -o bin/demo ./tests/demo
	@exec bin/demo --qrbd $(BIN) --db $(DB) $(DEMOFLAGS)

# Both halves run to the end, whichever fails first.
test: build ## the whole suite: unit packages with the race detector, then processes and simulations
	@tests/deps.sh test
	@rc=0; \
	$(GO) test -race -timeout 8m $(UNIT) || rc=1; \
	$(GO) test -timeout 11m -skip '^TestCrashPoints$$' $(WHOLE) || rc=1; \
	$(GO) test -timeout 11m -v -run '^TestCrashPoints$$' ./tests/sim || rc=1; \
	exit $$rc

check: ## gofmt, vet, staticcheck, import rules, short unit tests
	@out=$$(gofmt -l .); test -z "$$out" || { echo "gofmt -w is due for:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test ./tests/architecture
	$(GO) test -short $(UNIT)

sim: ## SEEDS runs of the simulator, from SEED on (SEEDS=1 SEED=s shows the events of s; STATE=f goes on where it ended)
	$(GO) test -v -count=1 -timeout 10h ./tests/sim -run '$(if $(filter 1,$(SEEDS)),TestTrace,TestSeeds)' -args -seeds $(or $(SEEDS),1000) -seed $(or $(SEED),1) $(if $(STATE),-state $(abspath $(STATE)))

mutants: ## break the code in ways that lose data, one by one: the simulator finds each within 2000 seeds
	$(GO) run ./tests/mutants $(MUTANTSFLAGS)

bench: build ## fio against qrbd, nbdkit and a qemu mirror in one run, as ratios
	@tests/deps.sh test
	$(GO) run ./tests/bench $(BENCHFLAGS)

fuzz: ## every fuzz target for FUZZTIME (10s)
	@tests/fuzz.sh $(FUZZTIME)

deps: ## install the Debian packages that suite and demo need and that are missing
	@tests/deps.sh demo test

clean: ## remove what was built
	rm -rf bin
	$(GO) clean -testcache
