//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// A client has one keep-alive connection, and never another.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, path string) *client {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * proctest.Limit))
	return &client{c, bufio.NewReader(c)}
}

// get makes a request, of which the first part may be sent already, and gives
// the process that has answered.
func (c *client) get(t *testing.T, request string) (pid int) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if _, serr := fmt.Sscanf(string(body), "hello from process %d", &pid); err != nil || serr != nil || resp.Close {
		t.Fatalf("got %q, %v, Connection: close %v", body, err, resp.Close)
	}
	return pid
}

func TestConnectionsMove(t *testing.T) {
	dir, err := os.MkdirTemp("", "g") // its path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	p := proctest.Start(t, proctest.Command{Path: proctest.Build(t, "."), Args: []string{"-path", path}})
	p.WaitLine(`grace: serving`)
	pid := p.Pid()
	const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
	kept := dial(t, path)
	if got := kept.get(t, request); got != pid {
		t.Fatalf("answer of process %d; want %d", got, pid)
	}
	fresh := dial(t, path) // moves before its first request
	for n := range 3 {
		p.Signal(pid, syscall.SIGUSR2)
		var next int
		fmt.Sscan(p.WaitLine(`grace: serving pid=(\d+)`)[1], &next)
		p.WaitGone(pid)
		pid = next
		for name, c := range map[string]*client{"kept": kept, "first used now": fresh, "new": dial(t, path)} {
			if got := c.get(t, request); got != pid {
				t.Errorf("upgrade %d, connection %s: answer of process %d; want %d", n+1, name, got, pid)
			}
		}
	}
	p.Signal(pid, syscall.SIGTERM)
	if rest, _ := io.ReadAll(kept.r); len(rest) > 0 {
		t.Errorf("got %q after the stop", strings.TrimSpace(string(rest)))
	}
	p.WaitAllGone()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket's file is left after the stop: %v", err)
	}
}
