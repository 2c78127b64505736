//go:build unix

package grace

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hung gives an Upgrader that serves one request, which ends with release or when it is
// cut off, and what the client gets.
func hung(t *testing.T, opts ...Option) (u *Upgrader, release func(), answer <-chan error) {
	t.Helper()
	u, ln := newSolo(t, opts...)
	begun, end := make(chan struct{}), make(chan struct{})
	u.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		select {
		case <-end:
			io.WriteString(w, "finished")
		case <-r.Context().Done():
		}
	})}, ln)
	go u.Run(context.Background())
	got := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String())
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		got <- err
	}()
	receive(t, begun, "the request")
	return u, func() { close(end) }, got
}

// shutDown calls Shutdown in the background, and waits until the stop has begun.
func shutDown(t *testing.T, u *Upgrader, ctx context.Context) <-chan error {
	t.Helper()
	c := make(chan error, 1)
	go func() { c <- u.Shutdown(ctx) }()
	receive(t, u.ctx.Done(), "the stop")
	return c
}

// TestShutdownIsSoft: however often it is called, and beside a signal, what has begun is
// finished.
func TestShutdownIsSoft(t *testing.T) {
	u, release, answer := hung(t)
	first := shutDown(t, u, t.Context())
	second := shutDown(t, u, t.Context())
	u.happen(evStop{stopRequest{signal: syscall.SIGTERM}})
	u.Abort()
	u.happen(evStop{}) // handled when the others are
	release()
	if err := receive(t, answer, "the answer"); err != nil {
		t.Errorf("the request that had begun: %v", err)
	}
	for _, c := range []<-chan error{first, second} {
		if err := receive(t, c, "Shutdown"); err != nil {
			t.Errorf("Shutdown: %v, want nil", err)
		}
	}
	if err := u.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown after Done: %v, want nil", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.Shutdown(ended); err != nil {
		t.Errorf("Shutdown after Done, its context has ended: %v, want nil", err)
	}
}

// TestShutdownCutsOff: at the end of its context, at the drain timeout, at a second
// signal, and at Close; the error counts, and says the context's if it was that.
func TestShutdownCutsOff(t *testing.T) {
	for name, c := range map[string]struct {
		opts []Option
		cut  func(u *Upgrader, cancel func())
		want error
	}{
		"the context ends": {nil, func(_ *Upgrader, cancel func()) { cancel() }, context.Canceled},
		"drain timeout":    {[]Option{DrainTimeout(time.Millisecond)}, func(*Upgrader, func()) {}, nil},
		"Close":            {nil, func(u *Upgrader, _ func()) { u.Close() }, nil},
		"second signal": {nil, func(u *Upgrader, _ func()) {
			at := time.Now()
			u.happen(evStop{stopRequest{signal: syscall.SIGTERM, at: at}})
			u.happen(evStop{stopRequest{signal: syscall.SIGTERM, at: at.Add(time.Second)}})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			u, _, answer := hung(t, c.opts...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stopped := shutDown(t, u, ctx)
			other := shutDown(t, u, t.Context())
			c.cut(u, cancel)
			if err := receive(t, answer, "the end of the request"); err == nil {
				t.Error("the request was answered, want it to be cut off")
			}
			var cut *CutError
			err := receive(t, stopped, "Shutdown")
			if !errors.As(err, &cut) || cut.Count != 1 || cut.Err != c.want || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), "1 connections were cut off") {
				t.Errorf("Shutdown: %v, want a CutError of 1 with %v", err, c.want)
			}
			if err := receive(t, other, "the other Shutdown"); !errors.As(err, &cut) || cut.Count != 1 || cut.Err != nil {
				t.Errorf("the other Shutdown: %v, want a CutError of 1 without a context's error", err)
			}
			receive(t, u.Done(), "Done")
		})
	}
}

// TestClose: it cuts off at once, and a second call does nothing.
func TestClose(t *testing.T) {
	u, _, answer := hung(t)
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- u.Close() }()
	}
	if err := receive(t, answer, "the end of the request"); err == nil {
		t.Error("the request was answered, want it to be cut off")
	}
	for range 2 {
		if err := receive(t, closed, "Close"); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	receive(t, u.Done(), "Done, which Close has waited for")
}

// TestShutdownWithoutContext: nothing stops.
func TestShutdownWithoutContext(t *testing.T) {
	u, _ := newSolo(t)
	var none context.Context
	if err := u.Shutdown(none); err == nil || !strings.Contains(err.Error(), "the context is nil") {
		t.Errorf("Shutdown(nil): %v", err)
	}
	if u.ctx.Err() != nil {
		t.Error("it stops")
	}
	u.Close()
}

// TestShutdownOfOldWhoseChildDies: the program of the old process has shut it down long
// after the hand-over, which ends that process alone; then the new one dies. The old one
// accepts again, and ends as it was told: the program waits for that.
func TestShutdownOfOldWhoseChildDies(t *testing.T) {
	for name, hard := range map[string]bool{"Shutdown": false, "Close": true} {
		t.Run(name, func(t *testing.T) {
			p := handsOver(t, standingBy)
			p.handedOverLongAgo(2 * passOnFor)
			p.old.happen(evStop{stopRequest{now: hard}})
			p.oldServer.mustDrain(t, "the old process")
			p.new.die()
			if !hard { // else what is left is cut off, and it has ended maybe before
				p.old.awaitEither(resuming, draining)
				close(p.oldServer.end)
			}
			receive(t, p.old.Done(), "Done of the old process")
		})
	}
}
