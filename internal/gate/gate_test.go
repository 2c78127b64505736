package gate

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A gated listener, and what its Accepts give.
func gated(t *testing.T) (*Gate, net.Listener, func() <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := New(l.(*net.TCPListener).SetDeadline)
	t.Cleanup(func() { g.Set(Closed); l.Close() })
	return g, l, func() <-chan error {
		c := make(chan error, 1)
		go func() {
			c <- g.Pass(func() error {
				conn, err := l.Accept()
				if err == nil {
					conn.Close()
				}
				return err
			})
		}()
		return c
	}
}

func connect(t *testing.T, l net.Listener) {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

func TestGateShutAndOpen(t *testing.T) {
	g, l, accept := gated(t)
	connect(t, l)
	first := accept() // waits at the gate: not ready yet
	g.Set(Open)
	if err := wait.For(t, first, "Accept through the open gate"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		a := accept()
		wait.Until(t, "a goroutine inside", g.IsOccupied)
		g.Set(Shut)
		wait.Until(t, "no goroutine inside a shut gate", func() bool { return g.IsQuiet() })
		connect(t, l) // no goroutine takes it
		select {
		case err := <-a:
			t.Fatalf("Accept of a shut gate returned %v", err)
		default:
		}
		g.Set(Open)
		if err := wait.For(t, a, "Accept through the opened gate"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGateEnds(t *testing.T) {
	for name, m := range map[string]Mode{"parked": Parked, "closed": Closed} {
		for _, from := range []Mode{Shut, Open} {
			t.Run(name, func(t *testing.T) {
				g, _, accept := gated(t)
				g.Set(from)
				a := accept()
				if from == Open {
					wait.Until(t, "a goroutine inside", g.IsOccupied)
				}
				g.Set(m)
				if err := wait.For(t, a, "Accept"); !errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v, want ErrClosed", err)
				}
				g.Set(Open)
				if _, _, err := g.Enter(); (err == nil) != (m == Parked) {
					t.Errorf("opened again: %v", err)
				}
			})
		}
	}
}

func TestGateDeadlines(t *testing.T) {
	past := time.Now().Add(-time.Hour)
	t.Run("at a shut gate", func(t *testing.T) {
		g, _, accept := gated(t)
		a := accept()
		g.SetDeadline(past)
		if err := wait.For(t, a, "Accept"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want ErrDeadlineExceeded", err)
		}
	})
	t.Run("inside", func(t *testing.T) {
		g, _, accept := gated(t)
		g.Set(Open)
		a := accept()
		wait.Until(t, "a goroutine inside", g.IsOccupied)
		g.SetDeadline(past)
		if err := wait.For(t, a, "Accept"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want ErrDeadlineExceeded", err)
		}
	})
	t.Run("set while shut, then opened", func(t *testing.T) {
		g, _, accept := gated(t)
		g.Set(Open)
		g.Set(Shut)
		g.SetDeadline(past)
		g.Set(Open)
		if err := wait.For(t, accept(), "Accept"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want ErrDeadlineExceeded", err)
		}
		g.SetDeadline(time.Time{})
		a := accept()
		wait.Until(t, "a goroutine inside", g.IsOccupied)
		select {
		case err := <-a:
			t.Errorf("Accept without a deadline returned %v", err)
		default:
		}
	})
	t.Run("ours is not the user's", func(t *testing.T) {
		g, l, accept := gated(t)
		g.Set(Open)
		g.SetDeadline(time.Now().Add(time.Hour))
		a := accept()
		for range 100 {
			g.Set(Shut)
			g.Set(Open)
		}
		connect(t, l)
		if err := wait.For(t, a, "Accept"); err != nil {
			t.Errorf("got %v, want a connection", err)
		}
	})
}

// A gate at which a connection is still to come is neither parked nor quiet.
func TestGateReserves(t *testing.T) {
	g, _, _ := gated(t)
	if g.Reserve() {
		t.Error("a shut gate expects a connection")
	}
	g.Set(Open)
	if !g.Reserve() {
		t.Error("an open gate expects no connection")
	}
	g.Set(Shut)
	if g.IsQuiet() {
		t.Error("a gate is quiet though a connection may come")
	}
	g.Set(Finishing)
	if g.Park(Parked) {
		t.Error("a gate was parked though a connection may come")
	}
	g.Unreserve()
	if !g.Park(Parked) || !g.IsQuiet() {
		t.Error("a gate was not parked when no connection came")
	}
}

func TestGateChanges(t *testing.T) {
	g, _, _ := gated(t)
	told := make(chan error, 10)
	g.Watch(func() { told <- nil })
	if g.Park(Parked) {
		t.Error("a shut gate was parked as a finishing one")
	}
	g.Set(Finishing)
	if g.IsQuiet() {
		t.Error("a finishing gate is quiet")
	}
	if !g.Park(Parked) || !g.IsQuiet() {
		t.Error("a finishing gate could not be parked")
	}
	g.Set(Parked) // no change
	for range 2 {
		wait.For(t, told, "word of a change")
	}
	select {
	case <-told:
		t.Error("word of a change that was none")
	default:
	}
}
