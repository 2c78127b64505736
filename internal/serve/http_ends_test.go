//go:build unix

package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A server of net/http, or its listener, ends while another process serves; and that one is
// rolled back.

// A sickListener is one of the user's that fails when it is told to.
type sickListener struct {
	net.Listener
	come   chan accepted
	fails  chan error
	over   chan struct{}
	closed atomic.Int32
}

func newSickListener(ln net.Listener) *sickListener {
	l := &sickListener{Listener: ln, come: make(chan accepted), fails: make(chan error), over: make(chan struct{})}
	go func() {
		for {
			c, err := ln.Accept()
			select {
			case l.come <- accepted{c, err}:
			case <-l.over:
				return
			}
		}
	}()
	return l
}

func (l *sickListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.fails:
		return nil, err
	case a := <-l.come:
		return a.conn, a.err
	}
}

// fail lets the Accept that is under way return err.
func (l *sickListener) fail(t *testing.T, err error) {
	t.Helper()
	select {
	case l.fails <- err:
	case <-time.After(wait.Limit):
		t.Fatal("nothing accepts from the listener")
	}
}

func (l *sickListener) Close() error {
	if l.closed.Add(1) == 1 {
		close(l.over)
	}
	return l.Listener.Close()
}

// mustAnswer asks over a connection of its own.
func mustAnswer(t *testing.T, ln net.Listener) {
	t.Helper()
	client := http.Client{Timeout: wait.Limit, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// TestListenerThatFailsInADrain: when the drain is called off net/http is given the error, and
// ends its Serve. The user's listener serves on, and is closed once, at the end.
func TestListenerThatFailsInADrain(t *testing.T) {
	u, ln := newProcess(t)
	l := newSickListener(ln)
	srv := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: log.New(io.Discard, "", 0)}
	served := u.run(t, u.HTTP(srv, l))
	s := u.httpServer(srv)
	s.draining.Store(NewDrain(nil))
	l.fail(t, errors.New("broken"))
	s.Resume()
	mustAnswer(t, ln)
	if n := l.closed.Load(); n != 0 {
		t.Errorf("the listener was closed %d times after the roll back", n)
	}
	u.askStop()
	wait.For(t, u.Done(), "Done")
	if err := wait.For(t, served, "execute"); err != nil {
		t.Errorf("execute returned %v", err)
	}
	if n := l.closed.Load(); n != 1 {
		t.Errorf("the listener was closed %d times in all, want once", n)
	}
}

// TestHTTPEndsInProbation: a server of net/http ends while a new process serves, and this one
// has not begun to drain it. When that is rolled back execute returns, if the program has
// ended the server; and if its listener is open still, it is served again.
func TestHTTPEndsInProbation(t *testing.T) {
	for _, moment := range []string{"probation", "before its drain"} {
		for _, end := range []string{"Close", "Shutdown", "listener closed", "listener fails"} {
			for _, wrapped := range []bool{false, true} {
				if end == "listener closed" && moment != "probation" || end == "listener fails" && !wrapped {
					continue // it is not closed, then; and ours does not fail
				}
				t.Run(fmt.Sprintf("%s, %s, wrapped: %v", moment, end, wrapped), func(t *testing.T) {
					u, ln := newProcess(t)
					l, sick := ln, (*sickListener)(nil)
					if wrapped {
						sick = newSickListener(ln)
						l = sick
					}
					srv := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: log.New(io.Discard, "", 0)}
					served := u.run(t, u.HTTP(srv, l))
					mustAnswer(t, ln)
					u.Socks.Yield(u.Socks.Snapshot(), []int{0})
					if moment != "probation" {
						u.Socks.EndAccept()
					}
					switch end {
					case "Close":
						srv.Close()
					case "Shutdown":
						ctx, cancel := context.WithTimeout(t.Context(), wait.Limit)
						defer cancel()
						if err := srv.Shutdown(ctx); err != nil {
							t.Fatal(err)
						}
					case "listener closed":
						ln.Close()
					case "listener fails":
						sick.fail(t, net.ErrClosed)
					}
					wait.Until(t, "the end of Serve", func() bool { return wait.Runs(".awaitBack(") })
					d := NewDrain(nil)
					d.Cancel()
					if moment != "probation" {
						u.httpServer(srv).Drain(d)
					}
					u.reopen(t)
					u.Reopened()
					d.Resume(u.All())
					switch end {
					case "listener fails":
						mustAnswer(t, ln)
						u.mustEnd(t, served)
					case "listener closed":
						wait.Until(t, "the end of the listener", func() bool {
							c, err := net.Dial("tcp", ln.Addr().String())
							if err == nil {
								c.Close()
							}
							return err != nil
						})
						if !wait.Runs(".awaitBack(") {
							t.Error("the roll back has ended a server whose listener the program has closed")
						}
						u.mustEnd(t, served)
					default:
						if err := wait.For(t, served, "execute"); err != http.ErrServerClosed {
							t.Errorf("execute returned %v, want %v", err, http.ErrServerClosed)
						}
						u.askStop()
						wait.For(t, u.Done(), "Done")
					}
				})
			}
		}
	}
}
