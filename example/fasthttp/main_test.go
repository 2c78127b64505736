//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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

func start(t *testing.T) (p *proctest.Process, addr string) {
	t.Helper()
	p = proctest.Start(t, proctest.Command{Path: proctest.Build(t, "."), Args: []string{"-addr", "127.0.0.1:0"}})
	addr = p.WaitLine(`^listening (\S+)`)[1]
	p.WaitLine(`grace: serving`)
	return p, addr
}

// A client has one keep-alive connection and never another, and tries nothing
// twice.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(3 * proctest.Limit))
	return &client{c, bufio.NewReader(c)}
}

// ask sends n requests at once and reads the answers. last says that the last
// answer was one with Connection: close.
func (c *client) ask(n int) (pid int, last bool, err error) {
	const request = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
	if _, err := io.WriteString(c, strings.Repeat(request, n)); err != nil {
		return 0, false, err
	}
	for range n {
		if pid, last, err = c.answer(); err != nil || last {
			break
		}
	}
	return pid, last, err
}

func (c *client) answer() (pid int, last bool, err error) {
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, false, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, false, err
	}
	if _, err := fmt.Sscanf(string(body), "hello from process %d", &pid); err != nil {
		return 0, false, fmt.Errorf("got %q: %w", body, err)
	}
	return pid, resp.Close, nil
}

func TestKeepAliveLoad(t *testing.T) {
	p, addr := start(t)
	const clients = 8
	var pids [clients]atomic.Int64
	var errs [clients]error
	var asked atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		c := dial(t, addr)
		wg.Go(func() {
			tick := time.NewTimer(0)
			defer tick.Stop()
			for errs[i] == nil {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				pid, last, err := c.ask(1 + rand.IntN(3))
				if err == nil && last {
					err = errors.New("the server has closed the connection")
				}
				if err != nil {
					pid, errs[i] = -1, fmt.Errorf("client %d: %w", i, err)
				}
				asked.Add(1)
				pids[i].Store(int64(pid))
				tick.Reset(rand.N(10 * time.Millisecond))
			}
		})
	}
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	unused := dial(t, addr)
	pid := p.Pid()
	for range 4 {
		p.Signal(pid, syscall.SIGUSR2)
		var next int
		fmt.Sscan(p.WaitLine(`grace: serving pid=(\d+)`)[1], &next)
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
	if err := errors.Join(errs[:]...); err != nil {
		t.Error(err)
	}
	if got, _, err := unused.ask(1); err != nil || got != pid {
		t.Errorf("the first request on an old connection: answer of process %d, %v; want %d", got, err, pid)
	}
	if n := p.Count(`grace: drained.* moved=9 finished=0 waited=0 cut=0`); n != 4 {
		t.Errorf("%d of 4 drains moved all 9 connections", n)
	}
	t.Logf("%d times asked", asked.Load())
}

// At the last stop each client gets its answer, and is told that it was the last.
func TestStop(t *testing.T) {
	p, addr := start(t)
	c := dial(t, addr)
	if _, last, err := c.ask(1); err != nil || last {
		t.Fatalf("first answer: %v, Connection: close %v", err, last)
	}
	p.Signal(p.Pid(), syscall.SIGTERM)
	p.WaitLine(`grace: stopping`)
	for {
		_, last, err := c.ask(1)
		if err != nil {
			t.Fatal(err)
		}
		if last {
			break
		}
	}
	if b, err := io.ReadAll(c.r); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v after the last answer", b, err)
	}
	p.WaitAllGone()
}

// TestHalfARequest: a client that has sent a request, and a half of the next one
// with it, loses neither when the process is replaced in between.
func TestHalfARequest(t *testing.T) {
	p, addr := start(t)
	const request, half = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 20
	idle := dial(t, addr)
	if _, _, err := idle.ask(1); err != nil {
		t.Fatal(err)
	}
	var clients []*client
	for range 8 {
		c := dial(t, addr)
		io.WriteString(c, request+request[:half])
		if _, _, err := c.answer(); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	old := p.Pid()
	p.Signal(old, syscall.SIGUSR2)
	var next int
	fmt.Sscan(p.WaitLine(`grace: serving pid=(\d+)`)[1], &next)
	proctest.WaitFor(t, proctest.Limit, "the idle connection to move", func() bool {
		pid, _, err := idle.ask(1)
		if err != nil {
			t.Fatal(err)
		}
		return pid == next
	})
	for i, c := range clients {
		io.WriteString(c, request[half:])
		if pid, _, err := c.answer(); err != nil || pid != old {
			t.Errorf("client %d: answer of process %d, %v; want %d", i, pid, err, old)
		}
	}
	p.WaitGone(old)
	for i, c := range clients {
		if pid, _, err := c.ask(1); err != nil || pid != next {
			t.Errorf("client %d, once more: answer of process %d, %v; want %d", i, pid, err, next)
		}
	}
}
