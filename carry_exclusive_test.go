//go:build unix

package grace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCarryStateExclusive: what is saved is what the state has come to when the old
// generation serves nothing any more, and has released; and it is there before the new one
// serves.
func TestCarryStateExclusive(t *testing.T) {
	b := newBank(t)
	var mu sync.Mutex
	calls, got := []string{}, ""
	note := func(call string) { mu.Lock(); defer mu.Unlock(); calls = append(calls, call) }
	b.v.fail = func(call string) error { note(call); return nil }
	opts := b.opts
	b.opts = func(n int) []Option {
		return append(opts(n), CarryState(func(_ context.Context, w io.Writer) error {
			note(fmt.Sprint(n, " save"))
			_, err := io.WriteString(w, "counted")
			return err
		}, func(_ context.Context, r io.Reader) error {
			note(fmt.Sprint(n, " restore"))
			b, err := io.ReadAll(r)
			got = string(b)
			return err
		}))
	}
	first := b.first()
	busy := b.visit(t)
	busy.send("/slow")
	receive(t, b.slow, "the slow request")
	done := first.upgrade()
	first.await(releasing)
	note("the request ends")
	close(b.go1)
	busy.reads("1")
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	b.visit(t).ask("2")
	mu.Lock()
	defer mu.Unlock()
	if want := "[1 acquire the request ends 1 release 2 acquire 2 restore 1 save]"; got != "counted" ||
		fmt.Sprint(calls) != want && fmt.Sprint(calls) != strings.Replace(want, "2 restore 1 save", "1 save 2 restore", 1) {
		t.Errorf("restored %q, the calls were %q, want %s", got, calls, want)
	}
}

// TestCarryStateExclusiveRefused: restore fails when the new generation has the exclusive
// state, which goes back.
func TestCarryStateExclusiveRefused(t *testing.T) {
	for name, hang := range map[string]bool{"restore fails": false, "save hangs": true} {
		t.Run(name, func(t *testing.T) {
			b := newBank(t, ExclusiveTimeout(time.Second))
			opts := b.opts
			b.opts = func(n int) []Option {
				return append(opts(n), CarryState(func(ctx context.Context, w io.Writer) error {
					if hang {
						<-ctx.Done()
					}
					return ctx.Err()
				}, func(_ context.Context, r io.Reader) error {
					if _, err := io.ReadAll(r); err != nil {
						return err
					}
					return errors.New("no")
				}))
			}
			first := b.first()
			idle := b.visit(t)
			idle.ask("1")
			done := first.upgrade()
			wantErr(t, b.next().err, ErrState)
			wantErr(t, receive(t, done, "Upgrade"), ErrExited)
			idle.ask("1")
			b.v.want(t, "1 acquire", "1 release", "2 acquire", "2 release", "1 acquire")
		})
	}
}
