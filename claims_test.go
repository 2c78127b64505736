//go:build unix

package grace

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/logtest"
)

// The program claims its sockets at any time before it accepts, also when it has
// said already which ones it takes.
func TestListenAfterTheClaims(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := newHouse(t, func(g *generation) error {
		if g.n > 1 {
			if err := g.handshake(); err != nil {
				return err
			}
		}
		l, err := g.Listen("unix", path)
		if err != nil {
			return err
		}
		g.serve(l)
		if g.n == 1 {
			return g.Ready()
		}
		reply := make(chan error, 1)
		g.post(func() { reply <- g.m.onReady() })
		return <-reply
	})
	h.opts = func(int) []Option { return []Option{Probation(0)} }
	old := h.first()
	if old.err != nil {
		t.Fatal(old.err)
	}
	done := old.upgrade()
	next := h.next()
	if next.err != nil {
		t.Fatal(next.err)
	}
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	receive(t, old.Done(), "Done of the old one")
	if got := ask(t, &net.UnixAddr{Net: "unix", Name: path}); got != "2" {
		t.Errorf("on the path answers %q, want generation 2", got)
	}
	next.askStop()
	receive(t, next.Done(), "Done of the new one")
}

// A socket that the new process does not use is named in the log.
func TestDroppedListenerIsSaid(t *testing.T) {
	var log logtest.Buffer
	path := filepath.Join(t.TempDir(), "s")
	h := newHouse(t, func(g *generation) error {
		if g.n == 1 {
			if _, err := g.Listen("unix", path); err != nil {
				return err
			}
		}
		return g.Ready()
	})
	h.opts = func(n int) []Option {
		if n == 1 {
			return []Option{Probation(0)}
		}
		return []Option{Logger(slog.New(slog.NewTextHandler(&log, nil)))}
	}
	done := h.first().upgrade()
	next := h.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	next.askStop()
	receive(t, next.Done(), "Done")
	next.die()
	if want := `does not use sockets that the old process has; it serves what is queued in them and closes them" sockets="unix ` + path; !strings.Contains(log.String(), want) {
		t.Errorf("the log does not say %s:\n%s", want, log.String())
	}
}

// A path that the new process has bound anew, since it led elsewhere, does not count as
// one that it does not use.
func TestBoundAnewIsNotDropped(t *testing.T) {
	var log logtest.Buffer
	dir := t.TempDir()
	link, path := filepath.Join(dir, "now"), filepath.Join(dir, "now", "s")
	lead := func(to string) {
		t.Helper()
		os.Remove(link)
		if err := errors.Join(os.Mkdir(filepath.Join(dir, to), 0o755), os.Symlink(to, link)); err != nil {
			t.Fatal(err)
		}
	}
	lead("1")
	h := newHouse(t, func(g *generation) error {
		if _, err := g.Listen("unix", path); err != nil {
			return err
		}
		return g.Ready()
	})
	h.opts = func(n int) []Option {
		if n == 1 {
			return []Option{Probation(0)}
		}
		return []Option{Logger(slog.New(slog.NewTextHandler(&log, nil)))}
	}
	old := h.first()
	lead("2")
	done := old.upgrade()
	next := h.next()
	if err := receive(t, done, "Upgrade"); err != nil {
		t.Fatal(err)
	}
	next.askStop()
	receive(t, next.Done(), "Done")
	next.die()
	if !strings.Contains(log.String(), `is bound anew`) || !strings.Contains(log.String(), `hint="if a link in the path leads elsewhere`) {
		t.Errorf("the log does not say that the path is bound anew, and that a link may be why:\n%s", log.String())
	}
	if strings.Contains(log.String(), "does not use sockets") {
		t.Errorf("the log says that the path is not used any more:\n%s", log.String())
	}
}
