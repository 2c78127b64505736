//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// TestOneWorks: through ten upgrades, of which two are rolled back in probation and one in
// the drain, one process at a time works, and each message is consumed. Of the requests none
// is lost but what a new process was answering when it was killed.
func TestOneWorks(t *testing.T) {
	dir := t.TempDir()
	p := proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, "."),
		Args: []string{"-addr", "127.0.0.1:0", "-queue", dir, "-every", "10ms", "-probation", "500ms"},
	})
	addr := p.WaitLine(`^listening (\S+)`)[1]
	pid := p.Pid()
	p.WaitLine(fmt.Sprintf(`^begin %d$`, pid))

	client := &http.Client{Timeout: proctest.Limit}
	defer client.CloseIdleConnections()
	end := make(chan struct{})
	var sent, lost int
	var sender sync.WaitGroup
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	stop := sync.OnceFunc(func() { close(end); sender.Wait() })
	defer stop()
	sender.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-pace.C:
			}
			sent++
			resp, err := client.Post("http://"+addr, "text/plain", strings.NewReader(fmt.Sprint("text ", sent)))
			if err != nil {
				t.Logf("message %d: %v", sent, err)
				lost++
				continue
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})

	killed := map[string]bool{}
	backs := 0
	for upgrade := 1; upgrade <= 10; upgrade++ {
		inProbation, inDrain := upgrade == 2 || upgrade == 5, upgrade == 8
		var busy net.Conn
		if inProbation || inDrain { // the old process can't end as long as a request is busy
			busy = half(t, addr)
		}
		p.Signal(pid, syscall.SIGUSR2)
		successor := p.WaitLine(`grace: the new process is ready; standing by new=(\d+)`)[1]
		var n int
		fmt.Sscan(successor, &n)
		if inDrain {
			p.WaitLine(fmt.Sprintf(`^begin %d$`, n))
		}
		if !inProbation && !inDrain {
			p.WaitLine(fmt.Sprintf(`^begin %d$`, n))
			p.WaitGone(pid)
			pid = n
			continue
		}
		begun := p.Count(fmt.Sprintf(`^begin %d$`, pid))
		killed[successor] = true
		p.Signal(n, syscall.SIGKILL)
		backs++
		proctest.WaitFor(t, proctest.Limit, "the roll back", func() bool { return p.Count(`grace: rolled back`) == backs })
		if inDrain {
			proctest.WaitFor(t, proctest.Limit, "the old process to work again", func() bool { return p.Count(fmt.Sprintf(`^begin %d$`, pid)) == begun+1 })
		}
		io.WriteString(busy, "lf")
		io.Copy(io.Discard, busy)
	}
	stop()
	proctest.WaitFor(t, proctest.Limit, "the queue to be empty", func() bool {
		left, _ := filepath.Glob(filepath.Join(dir, "*.msg"))
		return len(left) == 0
	})
	p.Signal(pid, syscall.SIGTERM)
	p.WaitAllGone()

	holder, periods, jobs := "", 0, 0
	consumed := map[string]string{} // text to pid
	for _, line := range p.Lines() {
		what, rest, _ := strings.Cut(line, " ")
		by, text, _ := strings.Cut(rest, " ")
		switch what {
		case "begin":
			if holder != "" && !killed[holder] {
				t.Errorf("process %s begins, and %s has not ended", by, holder)
			}
			holder = by
			periods++
			continue
		case "job":
			jobs++
		case "message":
			if before, twice := consumed[text]; twice && !killed[before] {
				t.Errorf("message %s was consumed by %s and %s", text, before, by)
			}
			consumed[text] = by
		case "end":
		default:
			continue
		}
		if by != holder {
			t.Errorf("%q, and process %s works", line, holder)
		}
		if what == "end" {
			holder = ""
		}
	}
	if holder != "" {
		t.Errorf("process %s has not ended its work", holder)
	}
	if want := 1 + 7 + 2; periods != want { // the first, each upgrade, the one that died, and again the old one
		t.Errorf("%d times a process has begun, want %d", periods, want)
	}
	if lost > backs { // the sender has one request at a time
		t.Errorf("%d requests were lost, want no more than one for each process that was killed", lost)
	}
	if most := sent + backs; len(consumed) < most-lost || len(consumed) > most || jobs == 0 {
		t.Errorf("%d messages were consumed, want %d, of which %d may be lost; the job was done %d times", len(consumed), most, lost, jobs)
	}
	t.Logf("%d messages, %d requests lost, %d times the job, in %d periods of work", len(consumed), lost, jobs, periods)
}

// half sends a request without the end of its body.
func half(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	text := "ha" + fmt.Sprintf("%06d", c.LocalAddr().(*net.TCPAddr).Port)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: grace\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(text)+2)
	c.SetReadDeadline(time.Now().Add(proctest.Limit))
	if line, err := bufio.NewReaderSize(c, 16).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("the handler does not read: %q, error %v", line, err)
	}
	io.WriteString(c, text)
	return c
}
