//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// flipUnit is the unit of tableflip's documentation, but for its directory.
const flipUnit = `[Service]
ExecStart=/usr/local/bin/tableflip /run/flip
ExecReload=/bin/kill -HUP $MAINPID
RuntimeDirectory=flip
`

// startFlipUnit boots a systemd, and starts ./tableflip there by a unit with these lines more.
func startFlipUnit(t *testing.T, lines string) (*systemd, *flipper) {
	t.Helper()
	program := proctest.Build(t, "./tableflip")
	s := bootSystemd(t, 250)
	s.install(program, "/usr/local/bin/tableflip")
	s.write("/run/units/flip.service", flipUnit+lines)
	s.do("systemctl", "daemon-reload")
	s.do("systemctl", "start", "flip.service")
	pid := atoi(t, s.waitJournal("flip.service", `^born pid=(\d+)$`)[1])
	return s, &flipper{&flips{t: t, dir: s.root + "/run/flip"}, pid}
}

// TestTableflipSystemd: with PIDFile= systemd takes each new process for the main one, and
// reload upgrades it, in a unit that says nothing of notify.
func TestTableflipSystemd(t *testing.T) {
	s, p := startFlipUnit(t, "PIDFile=/run/flip/pid\n")
	serve := func(p *flipper, addr string) string {
		t.Helper()
		p.want("ok", "new pidfile=/run/flip/pid")
		p.want("ok", "onhangup")
		addr = p.do("listen a tcp %s", addr)
		p.want("ok", "serve a")
		p.want("ok", "ready")
		return addr
	}
	addr := serve(p, "127.0.0.1:0")
	for range 3 {
		s.do("systemctl", "reload", "flip.service")
		old := p
		p = &flipper{p.flips, 0}
		s.wait("the new process", func() bool {
			for _, line := range s.journal("flip.service") {
				fmt.Sscanf(line, "born pid=%d", &p.pid) // the last one counts
			}
			return p.pid != old.pid
		})
		serve(p, addr)
		s.waitJournal("flip.service", fmt.Sprintf(`^upgraded pid=%d: <nil>$`, old.pid))
		old.want("ok", "waitexit")
		old.try("die 0")
		s.waitShow("flip.service", "MainPID", fmt.Sprint(p.pid))
		p.want("ok", "waitparent")
		if got := p.get("tcp", addr); got != p.pid {
			t.Errorf("process %d answers, want %d", got, p.pid)
		}
		s.waitShow("flip.service", "ActiveState", "active")
	}
	if got := s.show("flip.service", "NRestarts"); got != "0" {
		t.Errorf("systemd has restarted the service %s times, want 0", got)
	}
	s.do("systemctl", "stop", "flip.service")
	if got := s.show("flip.service", "ActiveState") + " " + s.show("flip.service", "Result"); got != "inactive success" {
		t.Errorf("the stopped service is %q", got)
	}
}

// TestTableflipSystemdWithoutPIDFile: a service that systemd would end with the old process
// is not upgraded, and the error is ErrNotSupported.
func TestTableflipSystemdWithoutPIDFile(t *testing.T) {
	s, p := startFlipUnit(t, "")
	p.want("ok", "new")
	addr := p.do("listen a tcp 127.0.0.1:0")
	p.want("ok", "serve a")
	p.want("ok", "ready")
	if got := p.do("upgrade"); !strings.HasPrefix(got, "not supported: ") {
		t.Errorf("Upgrade gives %q, want ErrNotSupported", got)
	}
	p.want("false", "exiting")
	if got := p.get("tcp", addr); got != p.pid || s.mainPid("flip.service") != p.pid {
		t.Errorf("process %d answers, and MainPID is %d; want %d", got, s.mainPid("flip.service"), p.pid)
	}
}
