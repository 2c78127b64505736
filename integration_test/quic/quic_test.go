//go:build linux

// Package quic runs upgrades of a server of quic-go.
package quic

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
)

var library = grace.Serve // so that a cached result is stale when it changes

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

// TestOneProcessReads: quic-go reads by recvmmsg(2), through SyscallConn. From the
// moment at which the new process is ready every packet is its own, while the old one
// stands by and while it drains: a connection that begins then works.
func TestOneProcessReads(t *testing.T) {
	for _, how := range []string{"plain", "hidden"} {
		t.Run(how, func(t *testing.T) {
			p := proctest.Start(t, proctest.Command{
				Path: proctest.Build(t, "./server"), Args: []string{"-how", how, "-pidfile", filepath.Join(t.TempDir(), "pid")},
			})
			m := p.WaitLine(`^listening (\S+) (\S+)`)
			packets, requests := m[1], m[2]
			p.WaitLine(`msg="grace: serving"`)
			old := p.Pid()
			echoes(t, packets, old)
			hold := request(t, requests) // and so the old process drains until this ends
			p.Signal(old, syscall.SIGUSR2)
			m = p.WaitLine(fmt.Sprintf(`msg="grace: the new process is ready; standing by".*from=%d.*new=(\d+)`, old))
			var fresh int
			fmt.Sscan(m[1], &fresh)
			for range 5 {
				echoes(t, packets, fresh)
			}
			p.WaitLine(fmt.Sprintf(`msg="grace: upgrade done; draining".*from=%d`, old))
			for range 5 {
				echoes(t, packets, fresh)
			}
			if !p.Has(old) {
				t.Error("the old process is gone: nothing was tested")
			}
			hold.Close()
			p.WaitGone(old)
			echoes(t, packets, fresh)
		})
	}
}

// echoes dials, and wants many answers of the process pid on one connection.
func echoes(t *testing.T, addr string, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), proctest.Limit)
	defer cancel()
	c, err := quic.DialAddr(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer c.CloseWithError(0, "")
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	deadline, _ := ctx.Deadline()
	s.SetDeadline(deadline)
	r := bufio.NewReader(s)
	for i := range 40 {
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatalf("round trip %d: %v", i, err)
		}
		got, err := r.ReadString('\n')
		if want := fmt.Sprintf("%d x\n", pid); err != nil || got != want {
			t.Fatalf("round trip %d: %q, %v; want %q", i, got, err, want)
		}
	}
}

// request begins a request, and gives its connection when the answer has begun.
func request(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(proctest.Limit))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "200") {
		t.Fatalf("the request: %q, %v", line, err)
	}
	return c
}
