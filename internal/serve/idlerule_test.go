package serve

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// TestIdleRule: net/http does what is assumed of it, and watching it takes no time that
// a user would notice.
func TestIdleRule(t *testing.T) {
	begun := time.Now()
	if err := watchServer((*http.Server).Serve); err != nil {
		t.Error(err)
	}
	t.Logf("took %v", time.Since(begun))
}

// A strangeServer serves HTTP as net/http does, or may do one day.
type strangeServer struct {
	noDeadline bool // sets none when the next request begins
	earlyIdle  bool // is idle before the next request is read to its end
	copies     bool // reads into slices that are always as large
	says408    bool // tells the client that it has waited in vain
	polite     bool // says that it closes
}

func (s strangeServer) serve(srv *http.Server, ln net.Listener) error {
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer srv.ConnState(c, http.StateClosed)
	defer c.Close()
	srv.ConnState(c, http.StateNew)
	r := io.Reader(c)
	if s.copies {
		r = copying{c}
	}
	in := bufio.NewReader(r)
	for first := true; ; first = false {
		if !first {
			c.SetReadDeadline(time.Time{})
		}
		_, err := in.Peek(1)
		if err != nil {
			if s.says408 {
				io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			}
			return err
		}
		if !first && !s.noDeadline {
			c.SetReadDeadline(time.Time{})
		}
		if s.earlyIdle {
			in.Peek(2)
			srv.ConnState(c, http.StateIdle)
		}
		req, err := http.ReadRequest(in)
		if err != nil {
			return err
		}
		srv.ConnState(c, http.StateActive)
		srv.Handler.ServeHTTP(nil, req)
		io.Copy(io.Discard, req.Body)
		closes := ""
		if s.polite {
			closes = "Connection: close\r\n"
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: 0\r\n\r\n", closes)
		srv.ConnState(c, http.StateIdle)
	}
}

// copying reads into a slice of its own, which is always as large.
type copying struct{ net.Conn }

func (c copying) Read(p []byte) (int, error) {
	b := make([]byte, sockets.FullSlice)
	n, err := c.Conn.Read(b)
	return copy(p, b[:n]), err
}

// TestIdleRuleBroken: a server that behaves otherwise than it must, so that half
// a request, or bytes to the client, would be lost by a move, is found out.
func TestIdleRuleBroken(t *testing.T) {
	if err := watchServer((strangeServer{}).serve); err != nil {
		t.Fatalf("a server that does what is assumed: %v", err)
	}
	for _, test := range []struct {
		strangeServer
		want string
	}{
		{strangeServer{noDeadline: true}, "half a request"},
		{strangeServer{earlyIdle: true, copies: true}, "byte by byte"},
		{strangeServer{says408: true}, "bytes that are no answer"},
		{strangeServer{polite: true}, "bytes that are no answer"},
	} {
		err := watchServer(test.serve)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got error %v, want one that says %q", test.strangeServer, err, test.want)
		}
	}
}
