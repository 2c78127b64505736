//go:build unix

package grace

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// A connection that was held for the new process, and that it refuses, is answered with
// 503, and does not hang until DrainTimeout.
func TestMeetHeldIsRefused(t *testing.T) {
	cert, trusts := tlstest.Certificate(t)
	trusts.ServerName = "127.0.0.1"
	b := newBank(t, MoveTLS(true), IdleGrace(time.Minute))
	b.tls = &tls.Config{Certificates: []tls.Certificate{cert}}
	first := b.first()
	idle := b.visit(t)
	idle.Conn = tls.Client(idle.Conn, trusts)
	idle.in = bufio.NewReader(idle.Conn)
	idle.ask("1")
	b.tls = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}
	if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	idle.send("/")
	idle.SetDeadline(time.Now().Add(5 * time.Second))
	resp, err := http.ReadResponse(idle.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %s", resp.Status)
	}
	idle.Close()
	receive(t, first.Done(), "Done")
}

// The channel of Draining stays closed until this process has the exclusive state again.
func TestMeetDrainingWhileAcquiring(t *testing.T) {
	b := newBank(t)
	acquiring, go1 := make(chan struct{}), make(chan struct{})
	b.v.fail = func(call string) error {
		if slices.Contains(b.v.calls(), "2 acquire") && call == "1 acquire" {
			close(acquiring)
			<-go1
		}
		return nil
	}
	g := b.first()
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	slow.notice <- struct{}{} // of the pause
	next := g.toDrain(slow, slow.begun)
	g.await(draining)
	next.die()
	receive(t, acquiring, "acquire")
	if !isClosed(g.Draining()) {
		t.Error("this process has not the exclusive state, and Draining's channel is open")
	}
	close(go1)
	slow.notice <- struct{}{}
	g.await(serving)
	if isClosed(g.Draining()) {
		t.Error("this process serves, and Draining's channel is closed")
	}
}

// What has become of an upgrade is told before the drain that follows it.
func TestMeetRolledBackBeforeDraining(t *testing.T) {
	sick := errors.New("no")
	told := make(eventLog, 99)
	acquiring, go1 := make(chan struct{}), make(chan struct{})
	b := newBank(t)
	b.v.fail = func(call string) error {
		if slices.Contains(b.v.calls(), "2 acquire") && call == "1 acquire" {
			close(acquiring)
			<-go1
		}
		return nil
	}
	opts := b.opts
	b.opts = func(n int) []Option {
		if n > 1 {
			return opts(n)
		}
		return append(opts(n), told.option(), HealthCheck(func(context.Context, *http.Client) error { return sick }))
	}
	g := b.first()
	g.upgrade()
	receive(t, acquiring, "acquire")
	g.askStop()
	close(go1)
	receive(t, g.Done(), "Done")
	got := told.kinds()
	if i, j := slices.Index(got, "rolled back"), slices.Index(got, "draining"); i < 0 || j < i {
		t.Errorf("told %q", got)
	}
}

// Many connections that were held reach the new process, also without a probation.
func TestMeetManyHeld(t *testing.T) {
	const n = 1500
	b := newBank(t, IdleGrace(time.Minute))
	first := b.first()
	var all []*visitor
	for range n {
		v := b.visit(t)
		v.ask("1")
		all = append(all, v)
	}
	if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, v := range all {
		v.send("/")
		resp, err := http.ReadResponse(v.in, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d connections are lost", lost, n)
	}
}

// The Peer of a drain is a process that has taken over, and not one that has given up.
func TestMeetDrainingPeer(t *testing.T) {
	told := make(eventLog, 99)
	slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
	h := newHouse(t, func(g *generation) error {
		if g.n == 2 {
			g.host.Add(slow)
		}
		return g.Ready()
	})
	h.opts = func(n int) []Option {
		if n > 1 {
			return []Option{Probation(limit)}
		}
		return []Option{Probation(limit), told.option()}
	}
	g := h.first()
	next, done := g.toProbation()
	next.Abort()
	wantErr(t, receive(t, done, "Upgrade"), ErrRolledBack)
	g.askStop()
	if e := told.await(t, EventDraining); e.Peer != 0 {
		t.Errorf("the service ends, and the peer is %d", e.Peer)
	}
	slow.notice <- struct{}{}
	receive(t, g.Done(), "Done")
}

// The PID file is taken back though a stop that has waited for the roll back begins at once.
func TestMeetPIDFileIsRetakenAtAStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	p := newPIDFile(path, "", slog.New(slog.DiscardHandler))
	if err := p.acquire(); err != nil {
		t.Fatal(err)
	}
	defer p.release(true)
	if err := os.WriteFile(path, []byte("999999999\n"), 0o644); err != nil { // of the new process, which is dead
		t.Fatal(err)
	}
	p.mu.Lock()
	done := make(chan error, 1)
	go func() { done <- p.retake() }()
	until(t, "retake", p.wanted.Load)
	p.rest()
	p.mu.Unlock()
	if err := receive(t, done, "retake"); err != nil {
		t.Error(err)
	}
	if got, want := readFile(t, path), fmt.Sprintln(os.Getpid()); got != want {
		t.Errorf("the PID file has %q, want %q", got, want)
	}
}

// What was finished, or cut off, before the exclusive state changed hands counts as well.
func TestMeetDrainedCountsThePause(t *testing.T) {
	told := make(eventLog, 99)
	b := newBank(t, CutAtRelease(true), ExclusiveTimeout(200*time.Millisecond))
	opts := b.opts
	b.opts = func(n int) []Option {
		if n == 1 {
			return append(opts(n), told.option())
		}
		return opts(n)
	}
	first := b.first()
	for range 3 {
		b.visit(t).ask("1")
	}
	for range 2 {
		v := b.visit(t)
		v.send("/slow")
		receive(t, b.slow, "the request")
	}
	if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
		t.Fatal(err)
	}
	if e := told.await(t, EventDrained); e.Cut != 2 || e.Moved != 3 || e.Finished != 0 {
		t.Errorf("cut %d, moved %d, finished %d, want 2, 3, 0", e.Cut, e.Moved, e.Finished)
	}
}
