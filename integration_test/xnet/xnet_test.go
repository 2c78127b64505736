//go:build linux

// Package xnet runs upgrades of servers that use golang.org/x/net's HTTP/2.
package xnet

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var library = grace.Serve // so that a cached result is stale when it changes

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

// hows are the ways in which the server sets up HTTP/2.
var hows = []string{"configure", "configure-unencrypted", "newhandler", "newhandler-configured", "wrapped-newhandler"}

// start starts a server, and gives its address.
func start(t *testing.T, how string) (p *proctest.Process, addr string) {
	t.Helper()
	p = proctest.Start(t, proctest.Command{
		Path: proctest.Build(t, "./server"),
		Args: []string{"-how", how, "-cert", tlstest.File(t), "-pidfile", filepath.Join(t.TempDir(), "pid")},
	})
	addr = p.WaitLine(`^listening (\S+)`)[1]
	p.WaitLine(`msg="grace: serving"`)
	return p, addr
}

// mustCutNone fails the test if the drain of the process old has cut off a connection.
func mustCutNone(t *testing.T, p *proctest.Process, old int) {
	t.Helper()
	m := p.WaitLine(fmt.Sprintf(`msg="grace: drained.*from=%d .*cut=(\d+)`, old))
	if m[1] != "0" {
		t.Errorf("%s connections were cut off", m[1])
	}
}

// TestGoAway: however HTTP/2 was set up, an idle connection is told to go away when the
// drain begins, and the old process is gone soon after, not when DrainTimeout is up;
// the user's settings hold.
func TestGoAway(t *testing.T) {
	for _, how := range hows {
		t.Run(how, func(t *testing.T) {
			p, addr := start(t, how)
			pid := p.Pid()
			for range 2 { // also of a process that was started by another
				c := dial(t, addr, how == "configure")
				if got, want := c.get(), fmt.Sprintf("pid=%d proto=HTTP/2.0", pid); got != want {
					t.Fatalf("answered %q, want %q", got, want)
				}
				if c.streams != 7 {
					t.Errorf("the server takes %d streams at once, want the 7 that are set", c.streams)
				}
				silent := dial(t, addr, how == "configure") // has asked for nothing
				silent.wait("SETTINGS", func() bool { return silent.streams > 0 })
				old := pid
				p.Signal(old, syscall.SIGUSR2)
				c.wait("two GOAWAYs", func() bool { return len(c.aways) == 2 })
				if want := []uint32{1<<31 - 1, 1}; c.code != http2.ErrCodeNo || !slices.Equal(c.aways, want) {
					t.Errorf("GOAWAY says code %v and last streams %d, want none and %d", c.code, c.aways, want)
				}
				c.wait("the end", func() bool { return c.ended != nil })
				if c.ended != io.EOF {
					t.Errorf("the connection ended with %v", c.ended)
				}
				silent.wait("GOAWAY", func() bool { return len(silent.aways) > 0 })
				p.WaitGone(old)
				mustCutNone(t, p, old)
				if n := p.Count(fmt.Sprintf(`^shutdown pid=%d$`, old)); n > 1 {
					t.Errorf("what was registered with RegisterOnShutdown was called %d times", n)
				}
				pid = p.WaitAlone()
			}
		})
	}
}

// A client is an HTTP/2 connection, frame by frame.
type client struct {
	t       *testing.T
	conn    net.Conn
	framer  *http2.Framer
	next    uint32
	body    bytes.Buffer
	streams uint32 // SETTINGS_MAX_CONCURRENT_STREAMS
	answers int
	code    http2.ErrCode // of the last GOAWAY
	aways   []uint32      // last streams of all
	ended   error
}

func dial(t *testing.T, addr string, overTLS bool) *client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, proctest.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(proctest.Limit))
	if overTLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	}
	c := &client{t: t, conn: conn, framer: http2.NewFramer(conn, conn), next: 1}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

// get asks once, and gives the answer.
func (c *client) get() string {
	c.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "test"}, {":path", "/"}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.next += 2
	c.body.Reset()
	answers := c.answers + 1
	c.wait("an answer", func() bool { return c.answers == answers })
	return c.body.String()
}

// wait reads frames until done says so, or there are no more.
func (c *client) wait(what string, done func() bool) {
	c.t.Helper()
	for !done() {
		f, err := c.framer.ReadFrame()
		if err != nil {
			if c.ended = err; !done() {
				c.t.Fatalf("waiting for %s: %v", what, err)
			}
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if n, ok := f.Value(http2.SettingMaxConcurrentStreams); ok {
				c.streams = n
			}
		case *http2.DataFrame:
			c.body.Write(f.Data())
		case *http2.GoAwayFrame:
			c.code = f.ErrCode
			c.aways = append(c.aways, f.LastStreamID)
		case *http2.PingFrame:
			if err := c.framer.WritePing(true, f.Data); err != nil {
				c.t.Fatal(err)
			}
		}
		if h := f.Header(); h.Flags.Has(http2.FlagDataEndStream) && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) {
			c.answers++
		}
	}
}
