//go:build unix

package grace

import (
	"context"
	"net/http"
	"testing"
)

// TestShutdownAfterRollBack: new dies at the moment in which nothing but
// hijacked connections is left in old, so that Shutdown closes the listener when
// old accepts again.
func TestShutdownAfterRollBack(t *testing.T) {
	u, err := newUpgrader(system{}, []Option{Signals(), Logger(nil), DrainTimeout(limit)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	shut := make(chan struct{}, 9)
	srv.RegisterOnShutdown(func() { shut <- struct{}{} })
	execute, _ := u.HTTP(srv, ln)
	served := make(chan error, 1)
	go func() { served <- execute() }()
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	get := func() {
		t.Helper()
		client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	get()

	// The end of a drain, between whose two lines the upgrade is rolled back.
	s := u.httpServer(srv)
	u.socks.yield(u.socks.snapshot(), []int{0})
	s.draining.Store(true)
	s.mu.Lock()
	s.isShut = true
	s.mu.Unlock()
	if err := u.socks.openGates(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go s.shut(ctx, srv)
	receive(t, shut, "Shutdown")
	cancel()
	s.resume()

	get()
	u.Stop()
	receive(t, u.Done(), "Done")
	if err := receive(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
}
