//go:build linux

package main

import (
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/exclusivetest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

var clients = exclusivetest.Clients{KeepAlive: 8, Connect: 3, Lines: 4}

func start(t *testing.T, more ...string) (s *exclusivetest.Server, path string) {
	path = proctest.Build(t, ".")
	args := append([]string{"-http", "127.0.0.1:0", "-lines", "127.0.0.1:0", "-file", "FILE", "-probation", "50ms"}, more...)
	return exclusivetest.Start(t, path, args...), path
}

func TestUpgrades(t *testing.T) {
	s, _ := start(t)
	exclusivetest.Upgrades(s, clients, 20)
}

func version(t *testing.T, broken string) string {
	return proctest.Build(t, ".", "-ldflags=-X 'main.broken="+broken+"'")
}

func TestBrokenVersions(t *testing.T) {
	s, good := start(t, "-timeout", "2s", "-probation", "300ms")
	failed, back := `grace: upgrade failed; this process goes on serving`, `grace: rolled back; this process accepts again`
	exclusivetest.Broken(s, clients, good,
		exclusivetest.Version{Name: "acquire fails", Path: version(t, "acquire"), Line: failed + `.*this version can't read the journal`},
		exclusivetest.Version{Name: "it dies in acquire", Path: version(t, "die"), Line: failed},
		exclusivetest.Version{Name: "it dies in probation", Path: version(t, "die later"), Line: back, Dies: true},
		exclusivetest.Version{Name: "acquire hangs", Path: version(t, "hang"), Line: failed},
	)
}
