//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

// TestLosslessLameDuck tells one of two services behind HAProxy to stop, under load. HAProxy
// asks the readiness handler ten times a second, and sends nothing twice; nor do the clients.
// Once it passes their connections on as they are, HTTP/1 and HTTP/2, once it speaks HTTP/1
// or HTTP/2 itself to the services. No client loses a request: HAProxy gives the service no
// new connection soon after the stop, and the old ones are told to end.
func TestLosslessLameDuck(t *testing.T) {
	var services []*loadServer
	for range 2 {
		services = append(services, startLoadServer(t, "plain", "h2c", "--", "-lame", "5s"))
	}
	leaves, stays := services[0], services[1]
	backend := func(name, mode, way, options string) string {
		text := fmt.Sprintf("backend %s\n\tmode %s\n\toption httpchk GET /readyz\n\thttp-check expect status 200\n\ttimeout check 30s\n", name, mode)
		for i, s := range services {
			port := s.addr["plain"][strings.LastIndexByte(s.addr["plain"], ':')+1:]
			text += fmt.Sprintf("\tserver service%d %s check port %s inter 100ms fall 1 rise 1 %s\n", i+1, s.addr[way], port, options)
		}
		return text
	}
	var config string
	var sockets []*os.File
	var fronts []string // their addresses
	for i, b := range []string{
		backend("b0", "tcp", "plain", ""),
		backend("b1", "tcp", "h2c", ""),
		backend("b2", "http", "plain", ""),
		backend("b3", "http", "h2c", "proto h2 check-proto h1"),
	} {
		socket, addr := boundSocket(t)
		sockets, fronts = append(sockets, socket), append(fronts, addr)
		mode := strings.Fields(b)[3]
		config += fmt.Sprintf("frontend f%d\n\tmode %s\n\tbind fd@%d\n\tdefault_backend b%d\n%s", i, mode, 3+i, i, b)
	}
	said := startHAProxy(t, config, sockets...)

	mixed := kinds(4, httpload.KeepAlive, httpload.Connect, httpload.Slow, httpload.Upload, httpload.Chunked)
	strict := kinds(4, httpload.KeepAlive, httpload.Connect, httpload.Slow, httpload.Upload, httpload.Pipelined, httpload.HTTP2)
	loads := []*httpload.Run{
		startHTTPLoad(t, httpload.Config{Addr: fronts[0], TLSAddr: fronts[1], Kinds: strict}), // HTTP/2 without TLS
		startHTTPLoad(t, httpload.Config{Addr: fronts[2], Kinds: mixed}),
		startHTTPLoad(t, httpload.Config{Addr: fronts[3], Kinds: mixed}),
	}
	each := func() {
		t.Helper()
		for _, l := range loads {
			waitAnswers(t, l, 10)
		}
	}
	each()
	for i, l := range loads {
		pids := l.Snapshot().Pids
		if !slices.Contains(pids, leaves.Pid()) || !slices.Contains(pids, stays.Pid()) {
			t.Errorf("load %d: processes %v have answered, want both %d and %d", i, pids, leaves.Pid(), stays.Pid())
		}
	}
	// A client of its own hears all that is said about going away.
	direct := http2test.NewClient(func() (c net.Conn, err error) { return net.DialTimeout("tcp", leaves.addr["h2c"], proctest.Limit) })
	direct.Limit, direct.Stays = proctest.Limit, true
	defer direct.Close()
	if _, err := direct.Post("/echo", "before"); err != nil {
		t.Fatal(err)
	}

	leaves.Signal(leaves.Pid(), syscall.SIGTERM)
	leaves.WaitLine(`accepting still, see LameDuck; .* for=5s`)
	if ws := leaves.WaitExit(leaves.Pid()); ws.ExitStatus() != 0 {
		t.Errorf("the service has ended with %v, want 0", ws)
	}
	each()
	for i, l := range loads {
		rep := l.Stop()
		if n := rep.Lost(); n > 0 {
			t.Errorf("load %d: %d requests were lost, want none", i, n)
		}
		t.Logf("load %d:\n%v", i, rep)
	}
	if n := loads[0].Snapshot().Kinds[httpload.KeepAlive].Announced; n == 0 {
		t.Error("no client of HTTP/1 was told that its connection ends")
	}
	if got := direct.GoAways(); !slices.Equal(got, []uint32{1<<31 - 1, 1}) {
		t.Errorf("the GOAWAYs have named streams %d as the last, want 2^31-1, then 1", got)
	}
	for i := range fronts {
		if want := fmt.Sprintf("Server b%d/service1 is DOWN, reason: Layer7 wrong status, code: 503", i); !strings.Contains(said.String(), want) {
			t.Errorf("HAProxy does not say %q", want)
		}
	}
	mustCutNone(t, leaves)
}
