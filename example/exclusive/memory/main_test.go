//go:build linux

package main

import (
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/exclusivetest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

var clients = exclusivetest.Clients{KeepAlive: 8, Connect: 3}

func start(t *testing.T) (s *exclusivetest.Server, path string) {
	path = proctest.Build(t, ".")
	return exclusivetest.Start(t, path, "-http", "127.0.0.1:0", "-file", "FILE", "-probation", "50ms"), path
}

func TestUpgrades(t *testing.T) {
	s, _ := start(t)
	exclusivetest.Upgrades(s, clients, 20)
}

func TestBrokenVersion(t *testing.T) {
	s, good := start(t)
	exclusivetest.Broken(s, clients, good, exclusivetest.Version{
		Name: "load fails", Path: proctest.Build(t, ".", "-ldflags=-X main.broken=yes"),
		Line: `grace: upgrade failed; this process goes on serving.*this version can't read the words`,
	})
}
