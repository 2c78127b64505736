//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestEventsOfProcesses: what each process has told its program when it has exited, in
// order, though the program takes 20 ms for each event: an upgrade, one that is rolled back
// since the new version is sick, and the end of the service.
func TestEventsOfProcesses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sick")
	s := startLoadServer(t, "plain", "--", "-events", "20ms", "-sick", file, "-check", "http://test/sized?n=1")
	first, second := s.beginUpgrade()
	s.WaitGone(first)
	if err := os.WriteFile(file, []byte("500"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.WaitLine(fmt.Sprintf(`^event "alone" pid=%d `, second)) // it may be upgraded
	s.Signal(second, syscall.SIGUSR2)
	third := atoi(t, s.WaitLine(fmt.Sprintf(`^event "handed over" pid=%d generation=2 peer=(\d+) `, second))[1])
	s.WaitLine(fmt.Sprintf(`^event "rolled back" pid=%d `, second))
	s.Signal(second, syscall.SIGTERM)
	s.WaitAllGone()

	got := map[string][]string{}
	last := map[string]string{}
	re := regexp.MustCompile(`^event "([^"]+)" pid=(\d+) (generation=\d+ peer=\d+) at=(\d+) (took=\w+ err=\w+)$`)
	for _, line := range s.Lines() {
		if m := re.FindStringSubmatch(line); m != nil {
			got[m[2]] = append(got[m[2]], strings.Join([]string{m[1], m[3], m[5]}, " "))
			if m[4] < last[m[2]] { // of one length
				t.Errorf("process %s: an event is older than the one before: %s", m[2], line)
			}
			last[m[2]] = m[4]
		} else if strings.HasPrefix(line, "event ") {
			t.Errorf("half a line: %q", line)
		}
	}
	for pid, want := range map[int][]string{
		first: {
			"ready generation=1 peer=0 took=false err=false",
			"asked generation=1 peer=0 took=false err=false",
			"started generation=1 peer=SECOND took=false err=false",
			"handed over generation=1 peer=SECOND took=true err=false",
			"draining generation=1 peer=SECOND took=false err=false",
			"drained generation=1 peer=0 took=true err=false",
			"stopped generation=1 peer=0 took=false err=false",
		},
		second: {
			"ready generation=2 peer=FIRST took=false err=false",
			"alone generation=2 peer=FIRST took=false err=false",
			"asked generation=2 peer=0 took=false err=false",
			"started generation=2 peer=THIRD took=false err=false",
			"handed over generation=2 peer=THIRD took=true err=false",
			"sick generation=2 peer=THIRD took=false err=true",
			"rolled back generation=2 peer=THIRD took=false err=true",
			"draining generation=2 peer=0 took=false err=false",
			"drained generation=2 peer=0 took=true err=false",
			"stopped generation=2 peer=0 took=false err=false",
		},
	} {
		r := strings.NewReplacer("FIRST", fmt.Sprint(first), "SECOND", fmt.Sprint(second), "THIRD", fmt.Sprint(third))
		for i := range want {
			want[i] = r.Replace(want[i])
		}
		if have := got[fmt.Sprint(pid)]; !slices.Equal(have, want) {
			t.Errorf("process %d has told\n\t%s\nwant\n\t%s", pid, strings.Join(have, "\n\t"), strings.Join(want, "\n\t"))
		}
	}
}
