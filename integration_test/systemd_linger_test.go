//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"
)

// TestSystemdLinger: a stream is held over five reloads. Each time systemd's main process is
// the one that serves; a stop ends those that linger as well, in peace: the main process
// waits for them, or systemd would kill them.
func TestSystemdLinger(t *testing.T) {
	for name, version := range map[string]int{"hello": 250, "hello-reload": 253} {
		t.Run(name, func(t *testing.T) {
			u := startUnit(t, unitConfig{name: name, version: version, args: []string{"-linger", "8", "-drain", "3s"}})
			var all []*stream
			for generation := 1; generation <= 5; generation++ {
				u.wantServing(generation, u.mainPid(u.unit))
				all = append(all, u.stream("/websocket"))
				old := u.mainPid(u.unit)
				if pid := u.reload(); pid == old {
					t.Fatalf("MainPID is %d still", pid)
				}
				u.waitJournal(u.unit, fmt.Sprintf(`the old process lingers; this one may be upgraded.* old=%d lingering=%d`, old, generation))
				mustLiveAll(all)
			}
			u.wantServing(6, u.mainPid(u.unit))
			if got := u.show(u.unit, "NRestarts"); got != "0" {
				t.Errorf("systemd has started it again %s times", got)
			}
			// A stop: what ends by itself is not cut off, the rest is, within DrainTimeout.
			u.do("systemctl", "stop", "--no-block", u.unit)
			u.waitJournal(u.unit, fmt.Sprintf(`the process that serves tells this one, which lingers, to end" from=%d `, all[0].pid))
			mustLiveAll(all)
			for _, st := range all[1:] {
				st.conn.Close()
			}
			all[0].cutOff()
			u.waitShow(u.unit, "ActiveState", "inactive")
			if got := u.show(u.unit, "Result"); got != "success" {
				t.Errorf("the unit's result is %s", got)
			}
			count := func(text string) (n int) {
				for _, line := range u.journal(u.unit) {
					if strings.Contains(line, `msg="grace: drained`) && strings.Contains(line, text) {
						n++
					}
				}
				return n
			}
			if cut, ended := count("waited=0 cut=1"), count("waited=1 cut=0"); cut != 1 || ended != 4 {
				t.Errorf("of 5 processes with a stream each, %d have cut it off, and %d not; want 1 and 4", cut, ended)
			}
		})
	}
}
