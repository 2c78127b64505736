//go:build unix

package serve

import (
	"net/http"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestShutdownAndRollBack: the new process dies at the moment in which nothing but
// hijacked connections is left in the old one, before Shutdown is called or when it
// closes the listener. No client that connects is lost.
func TestShutdownAndRollBack(t *testing.T) {
	for _, first := range []string{"Shutdown", "the roll back"} {
		t.Run(first, func(t *testing.T) {
			u, ln := newProcess(t)
			srv := &http.Server{Handler: http.NotFoundHandler()}
			shut := make(chan struct{}, 9)
			srv.RegisterOnShutdown(func() { shut <- struct{}{} })
			execute := u.HTTP(srv, ln)
			served := u.run(t, execute)
			get := func() error {
				client := http.Client{Timeout: wait.Limit, Transport: &http.Transport{DisableKeepAlives: true}}
				resp, err := client.Get("http://" + ln.Addr().String())
				if err == nil {
					resp.Body.Close()
				}
				return err
			}
			if err := get(); err != nil {
				t.Fatal(err)
			}

			// The end of a drain.
			s := u.httpServer(srv)
			u.Socks.Yield(u.Socks.Snapshot(), []int{0})
			u.Socks.EndAccept()
			s.draining.Store(NewDrain(nil))
			if !s.conns.wait(NewDrain(nil), func() bool { return s.left(false) == 0 }) {
				t.Fatal("the wait has ended in vain")
			}
			rollBack := func() {
				u.Socks.ReopenGates()
			}
			if first == "Shutdown" {
				s.shut(srv)
				wait.For(t, shut, "Shutdown")
				rollBack()
			} else {
				rollBack()
				s.shut(srv)
			}
			got := make(chan error, 9)
			for range cap(got) {
				go func() { got <- get() }()
			}
			s.Resume()

			for range cap(got) {
				if err := wait.For(t, got, "an answer"); err != nil {
					t.Error(err)
				}
			}
			if err := get(); err != nil {
				t.Error(err)
			}
			if len(shut) > 0 {
				t.Error("Shutdown was called after the roll back")
			}
			u.askStop()
			wait.For(t, u.Done(), "Done")
			if err := wait.For(t, served, "execute"); err != nil {
				t.Errorf("execute returned %v", err)
			}
		})
	}
}

// From the moment that a drain is called off no answer says that it is the last
// one, even if the server itself hears of it later.
func TestAnswersAfterACalledOffDrain(t *testing.T) {
	u, ln := newProcess(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	execute := u.HTTP(srv, ln)
	served := u.run(t, execute)
	d := NewDrain(nil)
	u.httpServer(srv).draining.Store(d)
	client := http.Client{Timeout: wait.Limit, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	saysClose := func() bool {
		t.Helper()
		resp, err := client.Get("http://" + ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.Close
	}
	if !saysClose() {
		t.Error("an answer while the process drains does not say that the connection is closed")
	}
	d.cancel()
	if saysClose() {
		t.Error("an answer after the roll back says that the connection is closed")
	}
	u.httpServer(srv).Resume()
	u.askStop()
	wait.For(t, u.Done(), "Done")
	if err := wait.For(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
}
