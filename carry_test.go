//go:build unix

package grace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// A till is a house whose generations carry text over, and accept connections, which they
// answer with their number.
type till struct {
	*house
	mu   sync.Mutex
	has  map[int]string // what each generation has; guarded by mu
	addr net.Addr
	// save and restore are those of all generations but for the ones in without.
	save    func(n int, ctx context.Context, w io.Writer) error
	restore func(n int, ctx context.Context, r io.Reader) error
	without map[int]bool
}

func newTill(t *testing.T, opts ...Option) *till {
	b := &till{has: map[int]string{1: "the state"}, without: map[int]bool{}}
	b.save = func(n int, _ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, b.state(n))
		return err
	}
	b.restore = func(n int, _ context.Context, r io.Reader) error {
		got, err := io.ReadAll(r)
		if err == nil {
			b.set(n, string(got))
		}
		return err
	}
	b.house = newHouse(t, func(g *generation) error {
		ln, err := g.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		if g.n == 1 {
			b.addr = ln.Addr()
		}
		g.serve(ln)
		return g.Ready()
	})
	b.opts = func(n int) []Option {
		o := append([]Option{Probation(0)}, opts...)
		if b.without[n] {
			return o
		}
		return append(o, CarryState(
			func(ctx context.Context, w io.Writer) error { return b.save(n, ctx, w) },
			func(ctx context.Context, r io.Reader) error { return b.restore(n, ctx, r) }))
	}
	return b
}

func (b *till) set(n int, s string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.has[n] = s
}

func (b *till) state(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.has[n]
}

func (b *till) want(n int, state string) {
	b.t.Helper()
	if got := b.state(n); got != state {
		b.t.Errorf("generation %d has %.50q, want %.50q", n, got, state)
	}
}

// upgraded lets g hand over to the next generation.
func (b *till) upgraded(g *generation) *generation {
	b.t.Helper()
	done := g.upgrade()
	next := b.next()
	if next.err != nil {
		b.t.Fatal(next.err)
	}
	if err := receive(b.t, done, "Upgrade"); err != nil {
		b.t.Fatal(err)
	}
	receive(b.t, g.Done(), "Done")
	return next
}

// TestCarryState: from generation to generation, and nothing is restored where there is
// nothing.
func TestCarryState(t *testing.T) {
	b := newTill(t)
	first := b.first()
	b.want(1, "the state")
	second := b.upgraded(first)
	b.want(2, "the state")
	b.set(2, "")
	b.upgraded(second)
	if _, ok := b.has[3]; !ok {
		t.Error("an empty state was not restored")
	}
	b.want(3, "")
}

// TestCarryStateVersions: one that knows of no state, on either side.
func TestCarryStateVersions(t *testing.T) {
	b := newTill(t)
	b.without[2] = true
	restored := b.restore
	b.restore = func(n int, ctx context.Context, r io.Reader) error {
		t.Errorf("generation %d restores, and there is nothing to restore", n)
		return restored(n, ctx, r)
	}
	second := b.upgraded(b.first())
	b.upgraded(second)
	askUntil(t, b.addr, "3")
}

// TestCarryStateHalf: a version that only saves, and one that only restores.
func TestCarryStateHalf(t *testing.T) {
	got := ""
	h := newHouse(t, func(g *generation) error { return g.Ready() })
	h.opts = func(n int) []Option {
		if n == 1 {
			return []Option{Probation(0), CarryState(func(_ context.Context, w io.Writer) error { _, err := io.WriteString(w, "x"); return err }, nil)}
		}
		return []Option{Probation(0), CarryState(nil, func(_ context.Context, r io.Reader) error {
			b, err := io.ReadAll(r)
			got += string(b)
			return err
		})}
	}
	g := h.first()
	for range 2 { // the third generation's parent saves nothing
		done := g.upgrade()
		next := h.next()
		if err := receive(t, done, "Upgrade"); err != nil {
			t.Fatal(err)
		}
		receive(t, g.Done(), "Done")
		g = next
	}
	if got != "x" {
		t.Errorf("restored %q, want x, once", got)
	}
}

// TestCarryStateRefused: restore can't read it. The upgrade fails, and the old generation
// serves on with its state, and gives it to a version that can; or the new one goes on
// without.
func TestCarryStateRefused(t *testing.T) {
	no := errors.New("saved by a later version")
	for name, c := range map[string]struct {
		restore func(io.Reader) error
		why     string
	}{
		"an error":              {func(io.Reader) error { return no }, no.Error()},
		"after some of it":      {func(r io.Reader) error { r.Read(make([]byte, 1)); return no }, no.Error()},
		"a panic":               {func(io.Reader) error { panic("no such field") }, "no such field"},
		"it ends its goroutine": {func(io.Reader) error { runtime.Goexit(); return nil }, "ended its goroutine"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTill(t)
			ok := b.restore
			b.restore = func(n int, ctx context.Context, r io.Reader) error {
				if n == 2 {
					return c.restore(r)
				}
				return ok(n, ctx, r)
			}
			first := b.first()
			done := first.upgrade()
			second := b.next()
			wantErr(t, second.err, ErrState)
			err := receive(t, done, "Upgrade")
			wantErr(t, err, ErrExited)
			if !strings.Contains(err.Error(), c.why) || strings.Count(second.err.Error(), "grace: ") != 1 {
				t.Errorf("the errors are %v and %v, want that they say %q", second.err, err, c.why)
			}
			askUntil(t, b.addr, "1")
			b.upgraded(first)
			b.want(3, "the state")
			askUntil(t, b.addr, "3")
		})
	}
	t.Run("it goes on without", func(t *testing.T) {
		b := newTill(t)
		b.restore = func(int, context.Context, io.Reader) error { return nil }
		b.upgraded(b.first())
		askUntil(t, b.addr, "2")
	})
}

// TestCarryStateNotWhole: save does not come to its end. What has come never looks whole,
// and the new generation decides.
func TestCarryStateNotWhole(t *testing.T) {
	large := strings.Repeat("x", 200<<10)
	for name, c := range map[string]struct {
		save func(*generation, context.Context, io.Writer) error
		why  string
	}{
		"an error": {func(_ *generation, _ context.Context, w io.Writer) error { return errors.New("disk full") }, "disk full"},
		"an error after a part": {func(_ *generation, _ context.Context, w io.Writer) error {
			io.WriteString(w, large)
			return errors.New("disk full")
		}, "disk full"},
		"a panic":               {func(_ *generation, _ context.Context, w io.Writer) error { panic("no such key") }, "no such key"},
		"it ends its goroutine": {func(_ *generation, _ context.Context, w io.Writer) error { runtime.Goexit(); return nil }, "ended its goroutine"},
		"it hangs": {func(_ *generation, ctx context.Context, w io.Writer) error {
			io.WriteString(w, large)
			<-ctx.Done()
			return ctx.Err()
		}, "its time was over"},
		"the old process dies": {func(g *generation, ctx context.Context, w io.Writer) error {
			io.WriteString(w, large)
			g.die()
			<-ctx.Done()
			return nil
		}, "has died"},
	} {
		test := func(goesOn bool) func(*testing.T) {
			return func(t *testing.T) {
				timeout := limit
				if strings.Contains(name, "hangs") {
					timeout = 2 * time.Second
				}
				var first *generation
				seen, saved := make(chan error, 1), make(chan struct{})
				b := newTill(t, ReadyTimeout(timeout))
				b.save = func(_ int, ctx context.Context, w io.Writer) error {
					defer close(saved)
					return c.save(first, ctx, w)
				}
				b.restore = func(_ int, _ context.Context, r io.Reader) error {
					got, err := io.ReadAll(r)
					if len(got) > len(large) {
						t.Errorf("%d bytes have come, want %d at most", len(got), len(large))
					}
					if _, again := r.Read(make([]byte, 1)); again != err {
						t.Errorf("Read gives %v after %v", again, err)
					}
					seen <- err
					if goesOn {
						return nil
					}
					return fmt.Errorf("the state: %w", err)
				}
				first = b.first()
				done := first.upgrade()
				err := receive(t, seen, "restore to see the error")
				wantErr(t, err, ErrState)
				if !strings.Contains(err.Error(), c.why) {
					t.Errorf("restore reads the error %v, want that it says %q", err, c.why)
				}
				next := b.next()
				receive(t, saved, "save to return")
				if goesOn {
					if next.err != nil {
						t.Fatal(next.err)
					}
					askUntil(t, b.addr, "2")
					return
				}
				wantErr(t, next.err, ErrState)
				if first.isDead() {
					return
				}
				wantErr(t, receive(t, done, "Upgrade"), ErrExited)
				askUntil(t, b.addr, "1")
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Run("the upgrade fails", test(false))
			t.Run("new goes on without", test(true))
		})
	}
}

// TestCarryStateHangs: neither function returns, nor heeds its context. Nothing waits for
// them but the new generation, for as long as it may take to be ready.
func TestCarryStateHangs(t *testing.T) {
	t.Run("save", func(t *testing.T) {
		b := newTill(t, ReadyTimeout(2*time.Second))
		hangs, began := make(chan struct{}), make(chan int, 9)
		save, restore := b.save, b.restore
		b.save = func(n int, ctx context.Context, w io.Writer) error {
			began <- n
			<-hangs
			return save(n, ctx, w)
		}
		failures := make(chan error, 9)
		b.restore = func(n int, ctx context.Context, r io.Reader) error {
			err := restore(n, ctx, r)
			failures <- err
			return err
		}
		first := b.first()
		done := first.upgrade()
		receive(t, began, "save")
		askUntil(t, b.addr, "1")
		wantErr(t, receive(t, done, "Upgrade"), ErrExited)
		wantErr(t, receive(t, failures, "restore"), ErrState)
		b.next()
		// It is not called again meanwhile, and is when it has returned.
		b.opts = func(o func(int) []Option) func(int) []Option {
			return func(n int) []Option { return append(o(n), ReadyTimeout(limit)) }
		}(b.opts)
		wantErr(t, receive(t, first.upgrade(), "the second Upgrade"), ErrExited)
		if err := receive(t, failures, "restore"); !strings.Contains(err.Error(), "still not returned") {
			t.Errorf("restore reads the error %v, want that save has still not returned", err)
		}
		b.next()
		if len(began) > 0 {
			t.Error("save was called while it ran")
		}
		close(hangs)
		b.upgraded(first)
		b.want(4, "the state")
	})
	t.Run("save, and the service is to stop", func(t *testing.T) {
		b := newTill(t)
		hangs, began := make(chan struct{}), make(chan bool)
		defer close(hangs)
		b.save = func(int, context.Context, io.Writer) error {
			close(began)
			<-hangs
			return nil
		}
		first := b.first()
		first.upgrade()
		receive(t, began, "save")
		first.askStop()
		receive(t, first.Done(), "Done")
	})
	t.Run("restore", func(t *testing.T) {
		b := newTill(t, ReadyTimeout(2*time.Second))
		hangs, saved := make(chan struct{}), make(chan error, 1)
		defer close(hangs)
		b.save = func(_ int, ctx context.Context, w io.Writer) error {
			_, err := io.Copy(w, endlessReader{})
			saved <- err
			return err
		}
		b.restore = func(_ int, _ context.Context, r io.Reader) error {
			io.ReadFull(r, make([]byte, 100))
			<-hangs
			return nil
		}
		first := b.first()
		done := first.upgrade()
		second := b.next()
		if second.err == nil {
			t.Fatal("a generation whose restore hangs serves")
		}
		if err := receive(t, done, "Upgrade"); !errors.Is(err, ErrExited) && !errors.Is(err, ErrReadyTimeout) {
			t.Errorf("Upgrade: %v", err)
		}
		if receive(t, saved, "save to end") == nil {
			t.Error("an endless save ends without an error")
		}
		askUntil(t, b.addr, "1")
	})
}

// TestCarryStateStopped: the new generation is told to stop while it restores, or is
// killed; save sees the end.
func TestCarryStateStopped(t *testing.T) {
	for name, end := range map[string]func(first, second *generation){
		"the service is to stop": func(first, _ *generation) { first.askStop() },
		"the new one is killed":  func(_, second *generation) { second.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newTill(t)
			ended, saving := make(chan error, 1), make(chan struct{})
			b.save = func(_ int, ctx context.Context, w io.Writer) error {
				io.WriteString(w, "some of it")
				close(saving)
				<-ctx.Done()
				ended <- ctx.Err()
				return ctx.Err()
			}
			b.restore = func(n int, ctx context.Context, r io.Reader) error {
				_, err := io.ReadAll(r)
				return err
			}
			first := b.first()
			made := make(chan *generation, 1)
			main := b.main
			b.main = func(g *generation) error { made <- g; return main(g) }
			done := first.upgrade()
			second := receive(t, made, "the second generation")
			receive(t, saving, "save")
			end(first, second)
			wantErr(t, receive(t, ended, "the end of save"), context.Canceled)
			if err := receive(t, done, "Upgrade"); err == nil {
				t.Error("the upgrade has succeeded")
			}
			wantErr(t, b.next().err, ErrStopped)
		})
	}
}

// TestCarryStateTwice: two of the option are a mistake.
func TestCarryStateTwice(t *testing.T) {
	if _, err := newOptions([]Option{CarryState(nil, nil), CarryState(nil, nil)}); err == nil || !strings.Contains(err.Error(), "grace: CarryState: it was given twice") {
		t.Errorf("got %v", err)
	}
}

// TestCarryStateLarge: 64 MB arrive unchanged, in writes of odd sizes.
func TestCarryStateLarge(t *testing.T) {
	const size = 64 << 20
	b := newTill(t)
	line := bytes.Repeat([]byte("0123456789abcdef!"), 1000)
	b.save = func(_ int, _ context.Context, w io.Writer) error {
		for left := size; left > 0; {
			n, err := w.Write(line[:min(left, len(line))])
			if err != nil {
				return err
			}
			left -= n
		}
		return nil
	}
	total := 0
	b.restore = func(_ int, _ context.Context, r io.Reader) error {
		for buf := make([]byte, len(line)); ; {
			n, err := io.ReadFull(r, buf)
			total += n
			if !bytes.Equal(buf[:n], line[:n]) {
				return fmt.Errorf("other bytes after %d", total-n)
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF && total == size {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	b.upgraded(b.first())
	if total != size {
		t.Errorf("%d bytes have come, want %d", total, size)
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { return len(p), nil }

// TestCarryStateReadToTheEnd: a restore that has what it wants does not make save fail.
func TestCarryStateReadToTheEnd(t *testing.T) {
	b := newTill(t)
	saved := make(chan error, 1)
	b.save = func(_ int, _ context.Context, w io.Writer) error {
		_, err := w.Write(make([]byte, 1<<20))
		saved <- err
		return err
	}
	b.restore = func(_ int, _ context.Context, r io.Reader) error {
		_, err := io.ReadFull(r, make([]byte, 10))
		return err
	}
	b.upgraded(b.first())
	if err := receive(t, saved, "save"); err != nil {
		t.Errorf("save could not write it all: %v", err)
	}
}
