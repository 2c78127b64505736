//go:build linux

package integration_test

import (
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// The commands of docs/systemd.md, with the server that the unit files name.
func TestSystemdDocs(t *testing.T) {
	hello := proctest.Build(t, "github.com/julofinance/grace/v3/example/systemd")
	for _, name := range []string{"hello", "hello-reload", "hello-socket", "hello-watchdog"} {
		t.Run(name, func(t *testing.T) {
			version := 250
			if name == "hello-reload" {
				version = 253
			}
			s, host := bootSystemd(t, version), loopback(t)
			s.install(hello, "/usr/local/bin/hello")
			s.unitFile(name+".service", "[Service]\nEnvironment=HELLO_ADDR="+host+":9000\n")
			if name == "hello-socket" {
				s.unitFile(name+".socket", "[Socket]\nListenStream=\nListenStream="+host+":9000\n")
			}
			s.do("systemctl", "daemon-reload")
			s.do("systemctl", "start", name)
			if out := s.do("systemctl", "show", "-p", "MainPID", "-p", "StatusText", name); !strings.Contains(out, "StatusText=generation 1 serves as pid") {
				t.Error(out)
			}
			s.do("systemctl", "reload", name)
			s.wait("the second generation", func() bool {
				return strings.HasPrefix(s.do("systemctl", "show", "-P", "StatusText", name), "generation 2 serves as pid")
			})
			s.do("sh", "-c", `! systemctl show -P StatusText "$0" | grep -E 'upgrade (failed|was rolled back)'`, name)
			s.do("sh", "-c", `kill -USR2 $(cat "/run/$0/hello.pid")`, name)
			s.wait("the third generation", func() bool {
				return strings.HasPrefix(s.do("systemctl", "show", "-P", "StatusText", name), "generation 3 serves as pid")
			})
			s.do("journalctl", "--sync")
			if out := s.do("journalctl", "-u", name, "-g", "grace", "--since", "-1h"); strings.Count(out, "grace: serving") != 3 {
				t.Errorf("journalctl shows:\n%s", out)
			}
			s.do("systemctl", "restart", name)
			s.do("systemctl", "stop", name)
			// Nothing in a unit file may be unknown to systemd.
			out := s.do("journalctl", "--no-pager", "-o", "cat")
			for _, line := range strings.Split(out, "\n") {
				if strings.Contains(line, "/run/units/hello") && strings.Contains(line, "ignoring") {
					t.Error(line)
				}
			}
		})
	}
}
