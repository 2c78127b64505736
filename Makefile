# make test    every test, with the race detector
# make lint    gofmt, go vet, staticcheck, the other platforms, and what may import what
# make oldest  the tests that depend on what Go's own packages do, with the oldest
#              Go that is supported; NEWEST and OLDEST say which
# make newest  the same with the newest that is released
# make mutants breaks one line of the code after the other, and sees that a test fails
# make linger  long streams of every kind, each held for a minute over five upgrades that are
#              5 s apart; it takes five minutes
# make demo    upgrades before your eyes; ARGS="-h" shows what can be set
# make bench   the cost, each against a baseline of the same run: first the table of
#              bench/, beside net/http and tableflip; ARGS="-h" shows what can be set
# make cover   the library's coverage, integration tests counted
#
# Go, git, make and gcc are enough. What the tests talk to besides (nginx, wrk
# and so on) is installed by apt-get if that may be; see .ci/packages.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PKG         := github.com/julofinance/grace/v3
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
OLDEST      := go1.25.0
NEWEST      := go1.27.3

# Every module of the repository, the root first.
MODULES := . $(filter-out .,$(patsubst %/go.mod,%,$(sort $(shell find . -name go.mod -not -path '*/testdata/*'))))

export GOWORK := off

# TESTFLAGS adds to what go test is given: make test TESTFLAGS="-run TestX -v".
TESTFLAGS ?=
TIMEOUT   ?= 60m
ARGS      ?=


.PHONY: all test oldest newest lint mutants linger bench cover demo packages clean

all: lint test

# A module that fails does not keep the others from being tested.
test: packages
	@failed=; \
	for dir in $(MODULES); do \
		echo "== test $$dir"; \
		(cd $$dir && CGO_ENABLED=1 go test -race -shuffle=on -timeout $(TIMEOUT) $(TESTFLAGS) ./...) || failed+=" $$dir"; \
	done; \
	if [ -n "$$failed" ]; then echo "FAIL in$$failed"; exit 1; fi

# How net/http reads, how it is given HTTP/2 and what blocks is what moving and
# ending connections rests on: the unit tests, the integration tests of that, and
# what others build on it: golang.org/x/net, exporter-toolkit, programs of compat/.
NETHTTP := Lossless(TLS|Unix|Wrapped|HTTP2|H2load)|HTTP2|WhichConnectionsMove|MoveOverUnix|Hooks|MovedConnection|HalfClosed|ExitsWhen
NETHTTP := $(NETHTTP)|MoveOverTLS|MoveOpenSSL|LosslessMoved|ReturningClients|DrainTimeout|ManyServers|StaysNonBlocking|UsesSendfile|UsesSplice|DeathInDrain|UpgradeUnderLoad|RollBackMatrix
COMPAT  := Original|Gracehttp|Endless|Tableflip
ONTOP   := $(addprefix integration_test/,xnet h2spec exporter compat)

oldest: export GOTOOLCHAIN := $(OLDEST)
newest: export GOTOOLCHAIN := $(NEWEST)
oldest newest: export CGO_ENABLED := 1
oldest newest: packages
	@echo "== $@: $$(go version)"
	@go test -race -shuffle=on -timeout $(TIMEOUT) $(TESTFLAGS) . ./internal/... ./compat/...
	@go test -race -shuffle=on -timeout $(TIMEOUT) -run '$(NETHTTP)|$(COMPAT)' $(TESTFLAGS) ./integration_test
	@go test -race -timeout $(TIMEOUT) -short -run 'Lossless300' $(TESTFLAGS) ./integration_test
	@failed=; \
	for dir in $(ONTOP); do \
		echo "== $@ $$dir"; \
		(cd $$dir && go test -race -shuffle=on -timeout $(TIMEOUT) $(TESTFLAGS) ./...) || failed+=" $$dir"; \
	done; \
	if [ -n "$$failed" ]; then echo "FAIL in$$failed"; exit 1; fi

packages:
	@.ci/packages
	@.ci/systemd

# Knowledge flows one way: no package of internal/ imports the root, and none depends on a
# ring above its own: serve over sockets and master, these over all others.
lint:
	@unformatted=$$(find . -name '*.go' -not -path './.git/*' -exec gofmt -l {} +); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'd:"; echo "$$unformatted"; exit 1; fi
	@go run ./internal/mutants -check
	@if go list -deps ./internal/... | grep -x '$(PKG)' >/dev/null; then echo "a package of internal/ imports the root: knowledge flows the other way"; exit 1; fi
	@go list -f '{{range .Deps}}{{$$.ImportPath}} {{.}}{{"\n"}}{{end}}' ./internal/... | awk ' \
		function ring(p) { return p == "$(PKG)/internal/serve" ? 3 : p ~ "^$(PKG)/internal/(sockets|master)$$" ? 2 : 1 } \
		ring($$2) > ring($$1) { print $$1 " depends on " $$2 ", which is of a ring above it"; up = 1 } \
		END { exit up }'
	@if grep -Hn Upgrader parent.go child.go; then echo "parent.go and child.go turn what they see into events, and know no Upgrader"; exit 1; fi
	@for dir in $(MODULES); do \
		echo "== vet, staticcheck $$dir"; \
		(cd $$dir && go vet ./... && go run $(STATICCHECK) ./...); \
	done
	@for dir in $(MODULES); do \
		for os in darwin freebsd windows; do \
			echo "== build, vet $$dir for $$os"; \
			(cd $$dir && export CGO_ENABLED=0 GOOS=$$os GOARCH=amd64 && go build -o /dev/null ./... && go vet ./...); \
		done; \
	done
	@for target in js/wasm wasip1/wasm plan9/amd64 linux/386 linux/arm64; do \
		echo "== build, vet . for $$target"; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go build -o /dev/null . ; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go vet . ; \
	done

# ARGS="-run NAME" breaks only what is called so.
mutants: packages
	@go run ./internal/mutants $(ARGS)

# What is cut, and what takes longer than it may after probation's end, fails.
LINGER := integration_test=TestLingerStreams example/websocket=TestClientStaysLong example/grpc=TestLongStreams

linger:
	@failed=; \
	for test in $(LINGER); do \
		echo "== linger $$test"; \
		(cd $${test%=*} && go test -count=1 -timeout $(TIMEOUT) -run "^$${test#*=}$$" -v $(TESTFLAGS) . -linger-long) || failed+=" $$test"; \
	done; \
	if [ -n "$$failed" ]; then echo "FAIL in$$failed"; exit 1; fi

# Each benchmark measures its baseline itself, turn by turn with what it is
# compared to, and prints the ratio: only that means something.
bench:
	@cd bench && go run . $(ARGS)
	@go test -run '^$$' -bench . -benchtime 1x -timeout $(TIMEOUT) $(TESTFLAGS) ./...

# The servers that the tests start are built with -cover when GOCOVERDIR is
# set (by env, since go test sets its own); what they and the tests themselves
# have run is added up.
# The library: what a program that imports the root has in it.
cover: LIBRARY = $(shell go list -deps . | grep '^$(PKG)' | paste -sd,)
cover: packages
	@rm -rf cover && mkdir -p cover/data
	@failed=; \
	for dir in $(MODULES); do \
		echo "== cover $$dir"; \
		(cd $$dir && go test -timeout $(TIMEOUT) $(TESTFLAGS) -exec "env GOCOVERDIR=$(CURDIR)/cover/data" \
			-cover -covermode=set -coverpkg=$(LIBRARY) ./... -args -test.gocoverdir=$(CURDIR)/cover/data) || failed+=" $$dir"; \
	done; \
	go tool covdata textfmt -i=cover/data -pkg=$(LIBRARY) -o=cover/profile.txt; \
	go tool cover -func=cover/profile.txt > cover/functions.txt; \
	awk 'END { print "total, unit and integration tests together: " $$NF }' cover/functions.txt; \
	if [ -n "$$failed" ]; then echo "FAIL in$$failed"; exit 1; fi

demo:
	@mkdir -p bin && go build -o bin/demo ./example/demo && exec bin/demo $(ARGS)

clean:
	rm -rf bin cover demo.log
