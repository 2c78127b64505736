//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// An asker asks over one connection, and never another, and gives the process
// that has answered.
type asker func(n int) (pid int, err error)

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	return c
}

func askHTTP(c net.Conn, answer string) asker {
	r := bufio.NewReader(c)
	return func(int) (pid int, err error) {
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return 0, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return 0, err
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, err
		}
		_, err = fmt.Sscanf(string(b), answer, &pid)
		return pid, err
	}
}

// askUDP sends a packet once: on the loopback none gets lost but by the server.
func askUDP(c net.Conn) asker {
	b := make([]byte, 1000)
	return func(n int) (pid int, err error) {
		if _, err := fmt.Fprintf(c, "packet %d", n); err != nil {
			return 0, err
		}
		size, err := c.Read(b)
		if err != nil {
			return 0, err
		}
		head, tail, _ := strings.Cut(string(b[:size]), " ")
		if tail != fmt.Sprintf("packet %d", n) {
			return 0, fmt.Errorf("packet %d was answered with %q", n, b[:size])
		}
		_, err = fmt.Sscan(head, &pid)
		return pid, err
	}
}

func TestUpgrades(t *testing.T) {
	p := proctest.Start(t, proctest.Command{Path: proctest.Build(t, "."), Args: []string{"-http", "127.0.0.1:0", "-admin", "127.0.0.1:0", "-udp", "127.0.0.1:0"}})
	addrs := p.WaitLine(`^listening (\S+) (\S+) (\S+)`)
	p.WaitLine(`grace: serving`)
	askers := []asker{
		askHTTP(dial(t, "tcp", addrs[1]), "hello from process %d"),
		askHTTP(dial(t, "tcp", addrs[2]), "process %d is well"),
		askUDP(dial(t, "udp", addrs[3])),
	}
	pids := make([]atomic.Int64, len(askers))
	errs := make([]error, len(askers))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, ask := range askers {
		wg.Go(func() {
			for n := 0; errs[i] == nil; n++ {
				select {
				case <-stop:
					return
				default:
				}
				var pid int
				if pid, errs[i] = ask(n); errs[i] != nil {
					pid = -1
				}
				pids[i].Store(int64(pid))
			}
		})
	}
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	pid := p.Pid()
	for range 3 {
		p.Signal(pid, syscall.SIGHUP)
		var next int
		fmt.Sscan(p.WaitLine(`grace: serving pid=(\d+)`)[1], &next)
		if pid == p.Pid() {
			if ws := p.WaitExit(pid); ws.ExitStatus() != 0 {
				t.Errorf("the first process ended with status %d; want 0", ws.ExitStatus())
			}
		}
		p.WaitGone(pid)
		pid = next
		for i := range pids {
			proctest.WaitFor(t, proctest.Limit, fmt.Sprintf("an answer of process %d to client %d", pid, i), func() bool {
				got := pids[i].Load()
				return got == int64(pid) || got == -1
			})
		}
	}
	end()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	p.Signal(pid, syscall.SIGTERM)
	if ws := p.WaitExit(pid); ws.ExitStatus() != 0 {
		t.Errorf("the last process ended with status %d; want 0", ws.ExitStatus())
	}
}
