//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/serve"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// What the old process tells of a new version that is ready and does not work, and what it
// is itself after the roll back.

// until returns the kinds that are told up to one of kind, and that event.
func (l eventLog) until(t *testing.T, kind EventKind) (told []string, last Event) {
	t.Helper()
	for last.Kind != kind {
		last = receive(t, l, kind.String())
		told = append(told, last.Kind.String())
	}
	return told, last
}

// readiness is the status that the process at addr says of itself, over a new connection.
func readiness(t *testing.T, addr net.Addr) int {
	t.Helper()
	c := &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + addr.String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestSickVersionIsTold: a failed health check is an event and a line, each with the check's
// error, and so is the roll back, with ErrUnhealthy. The old process is ready afterwards and
// does not drain; when it is told to stop, it is a lame duck. That in probation and in the
// drain.
func TestSickVersionIsTold(t *testing.T) {
	for _, drains := range []bool{false, true} {
		t.Run(fmt.Sprintf("drains %v", drains), func(t *testing.T) {
			sick := errors.New("the check says no")
			told, lines := make(eventLog, 99), logtest.New(func(slog.Record) {})
			var fails atomic.Bool
			fails.Store(!drains)
			h, addrs := httpHouse(t, "tcp", func(g *generation) http.HandlerFunc { return Readiness })
			h.opts = func(n int) []Option {
				opts := []Option{Probation(0), LameDuck(time.Hour)}
				if n > 1 {
					return opts
				}
				return append(opts, told.option(), Logger(slog.New(lines)), HealthCheck(func(context.Context, *http.Client) error {
					if fails.Load() {
						return sick
					}
					return nil
				}))
			}
			g := h.first()
			addr, early := receive(t, addrs, "the address"), g.Draining()
			slow := &slowDrainer{begun: make(chan *serve.Drain, 9), notice: make(chan struct{}, 9)}
			want := []string{"ready", "asked", "started", "handed over", "sick"}
			var next *generation
			if drains {
				next = g.toDrain(slow, slow.begun)
				g.post(func() { go g.happen(evProbationOver{g.m.child.id, sick}) })
				want = slices.Insert(want, 4, "draining")
			} else {
				done := g.upgrade()
				next = h.next()
				err := receive(t, done, "Upgrade")
				wantErr(t, err, ErrUnhealthy)
				wantErr(t, err, sick)
			}

			got, e := told.until(t, EventSick)
			if !slices.Equal(got, want) {
				t.Errorf("told %q, want %q", got, want)
			}
			if e.Peer != next.Pid() || !errors.Is(e.Err, sick) {
				t.Errorf("sick: %+v, want the new one's pid and %q", e, sick)
			}
			got, e = told.until(t, EventRolledBack)
			if want := []string{"rolled back"}; !slices.Equal(got, want) {
				t.Errorf("then told %q, want %q", got, want)
			}
			var failure *UpgradeError
			if e.Peer != next.Pid() || !errors.As(e.Err, &failure) || failure.Reason != ErrUnhealthy || !errors.Is(e.Err, sick) {
				t.Errorf("rolled back: %+v, want the new one's pid and %q, for %q", e, ErrUnhealthy, sick)
			}
			for _, line := range []string{
				fmt.Sprintf(`the new process is not well, and is killed" new=%d err=`, next.Pid()),
				`rolled back; this process accepts again" err=`,
			} {
				until(t, "the line "+line, func() bool {
					return slices.ContainsFunc(lines.Buffer.Lines(), func(l string) bool {
						return strings.Contains(l, line) && strings.Contains(l, sick.Error())
					})
				})
			}

			if isClosed(early) != drains || isClosed(g.Draining()) {
				t.Errorf("Draining of before is closed: %v, want %v; that of now: %v, want that it is open", isClosed(early), drains, isClosed(g.Draining()))
			}
			if code := readiness(t, addr); code != http.StatusOK {
				t.Errorf("after the roll back the process says %d of itself, want 200", code)
			}
			g.askStop()
			if drains { // it returns from the drain still
				g.await(resuming)
				slow.notice <- struct{}{}
			}
			told.await(t, EventLameDuck)
			if code := readiness(t, addr); code != http.StatusServiceUnavailable {
				t.Errorf("the lame duck says %d of itself, want 503", code)
			}
			if isClosed(g.Draining()) {
				t.Error("the lame duck drains")
			}
			slow.notice <- struct{}{}
			go g.happen(evLameOver{})
			receive(t, g.Done(), "Done")
			if got, want := told.kinds(), []string{"draining", "drained", "stopped"}; !slices.Equal(got, want) {
				t.Errorf("at the end told %q, want %q", got, want)
			}
		})
	}
}
