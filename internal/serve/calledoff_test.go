//go:build unix

package serve

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// TestOnShutdown: what was registered with RegisterOnShutdown is called when a drain
// begins, also while a request is busy that ends only by that; and not again, if the drain
// was called off, by the next one. No request is lost by it.
func TestOnShutdown(t *testing.T) {
	for name, bound := range map[string]bool{"free": false, "bound": true} {
		t.Run(name, func(t *testing.T) {
			leaving := make(chan struct{})
			begun := make(chan struct{}, 1)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stream" {
					begun <- struct{}{}
					<-leaving
				}
				io.WriteString(w, "answer")
			})}
			if bound {
				srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"x": nil}
			}
			srv.RegisterOnShutdown(func() { close(leaving) }) // panics if it is called twice
			u, ln := newProcess(t)
			served := u.run(t, u.HTTP(srv, ln))
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			client := http.Client{Timeout: wait.Limit, Transport: tr}
			get := func(path string) (closes bool, err error) {
				resp, err := client.Get("http://" + ln.Addr().String() + path)
				if err != nil {
					return false, err
				}
				defer resp.Body.Close()
				_, err = io.ReadAll(resp.Body)
				return resp.Close, err
			}
			stream := make(chan error, 1)
			go func() { _, err := get("/stream"); stream <- err }()
			wait.For(t, begun, "the stream")
			if _, err := get("/"); err != nil { // leaves an idle connection
				t.Fatal(err)
			}
			s := u.httpServer(srv)
			for range 2 {
				d := NewDrain(nil)
				drained := make(chan Report, 1)
				go func() { drained <- s.Drain(d) }()
				wait.For(t, leaving, "what was registered with RegisterOnShutdown")
				wait.Until(t, "the drain", s.ends) // the second one calls nothing
				if closes, err := get("/"); err != nil || !closes {
					t.Errorf("during the drain: the answer says Connection: close: %v, error %v", closes, err)
				}
				d.Cancel()
				wait.For(t, drained, "the drain that was called off")
				for range 2 {
					if closes, err := get("/"); err != nil || closes {
						t.Errorf("after the drain: the answer says Connection: close: %v, error %v", closes, err)
					}
				}
			}
			if err := wait.For(t, stream, "the end of the stream"); err != nil {
				t.Error(err)
			}
			tr.CloseIdleConnections()
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

// A server that is changed too late says so, and does not serve something else.
func TestHandlerSetTooLate(t *testing.T) {
	u, ln := newProcess(t)
	srv := &http.Server{}
	execute := u.HTTP(srv, ln)
	srv.Handler = http.NotFoundHandler()
	served := u.run(t, execute)
	if err := wait.For(t, served, "execute"); err != errHandlerSet {
		t.Errorf("execute returned %v, want %v", err, errHandlerSet)
	}
	u.askStop()
	wait.For(t, u.Done(), "Done")
}

// A server that is shut down closes what it has not read a request from: the anchor would
// be taken for one that the program has closed.
func TestAnchorIsHeld(t *testing.T) {
	u, _ := newProcess(t)
	for range 100 {
		s := u.httpServer(&http.Server{})
		s.raiseAnchor()
		select {
		case <-s.anchor.held:
		default:
			t.Fatal("the handler does not have the anchor's request yet")
		}
		s.anchor.letGo()
	}
	u.askStop()
	wait.For(t, u.Done(), "Done")
}
