package grace

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// A gated listener, and what its Accepts give.
func gated(t *testing.T) (*gate, net.Listener, func() <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(l.(*net.TCPListener).SetDeadline)
	t.Cleanup(func() { g.set(gateClosed); l.Close() })
	return g, l, func() <-chan error {
		c := make(chan error, 1)
		go func() {
			c <- g.pass(func() error {
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

func wait(t *testing.T, c <-chan error, what string) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for %s", what)
		return nil
	}
}

func quiet(g *gate) bool { return g.isQuiet() }

// until polls: a gate tells when somebody leaves, not when he enters.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	end := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (g *gate) somebodyInside() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside > 0
}

func TestGateShutAndOpen(t *testing.T) {
	g, l, accept := gated(t)
	connect(t, l)
	first := accept() // waits at the gate: not ready yet
	g.set(gateOpen)
	if err := wait(t, first, "Accept through the open gate"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		a := accept()
		until(t, "somebody inside", g.somebodyInside)
		g.set(gateShut)
		until(t, "nobody inside a shut gate", func() bool { return quiet(g) })
		connect(t, l) // nobody takes it
		select {
		case err := <-a:
			t.Fatalf("Accept of a shut gate returned %v", err)
		default:
		}
		g.set(gateOpen)
		if err := wait(t, a, "Accept through the opened gate"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGateEnds(t *testing.T) {
	for name, m := range map[string]gateMode{"parked": gateParked, "closed": gateClosed} {
		for _, from := range []gateMode{gateShut, gateOpen} {
			t.Run(name, func(t *testing.T) {
				g, _, accept := gated(t)
				g.set(from)
				a := accept()
				if from == gateOpen {
					until(t, "somebody inside", g.somebodyInside)
				}
				g.set(m)
				if err := wait(t, a, "Accept"); !errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v, want ErrClosed", err)
				}
				g.set(gateOpen)
				if _, _, err := g.enter(); (err == nil) != (m == gateParked) {
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
		g.setDeadline(past)
		if err := wait(t, a, "Accept"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want ErrDeadlineExceeded", err)
		}
	})
	t.Run("inside", func(t *testing.T) {
		g, _, accept := gated(t)
		g.set(gateOpen)
		a := accept()
		until(t, "somebody inside", g.somebodyInside)
		g.setDeadline(past)
		if err := wait(t, a, "Accept"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want ErrDeadlineExceeded", err)
		}
	})
	t.Run("set while shut, then opened", func(t *testing.T) {
		g, _, accept := gated(t)
		g.set(gateOpen)
		g.set(gateShut)
		g.setDeadline(past)
		g.set(gateOpen)
		if err := wait(t, accept(), "Accept"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want ErrDeadlineExceeded", err)
		}
		g.setDeadline(time.Time{})
		a := accept()
		until(t, "somebody inside", g.somebodyInside)
		select {
		case err := <-a:
			t.Errorf("Accept without a deadline returned %v", err)
		default:
		}
	})
	t.Run("ours is not the user's", func(t *testing.T) {
		g, l, accept := gated(t)
		g.set(gateOpen)
		g.setDeadline(time.Now().Add(time.Hour))
		a := accept()
		for range 100 {
			g.set(gateShut)
			g.set(gateOpen)
		}
		connect(t, l)
		if err := wait(t, a, "Accept"); err != nil {
			t.Errorf("got %v, want a connection", err)
		}
	})
}

// A gate at which somebody is still to come is neither parked nor quiet.
func TestGateExpects(t *testing.T) {
	g, _, _ := gated(t)
	if g.expect() {
		t.Error("a shut gate expects somebody")
	}
	g.set(gateOpen)
	if !g.expect() {
		t.Error("an open gate expects nobody")
	}
	g.set(gateShut)
	if quiet(g) {
		t.Error("a gate is quiet though somebody may come")
	}
	g.set(gateFinishing)
	if g.park(gateParked) {
		t.Error("a gate was parked though somebody may come")
	}
	g.settled()
	if !g.park(gateParked) || !quiet(g) {
		t.Error("a gate was not parked when nobody came")
	}
}

func TestGateChanges(t *testing.T) {
	g, _, _ := gated(t)
	told := make(chan error, 10)
	g.watch(func() { told <- nil })
	if g.park(gateParked) {
		t.Error("a shut gate was parked as a finishing one")
	}
	g.set(gateFinishing)
	if quiet(g) {
		t.Error("a finishing gate is quiet")
	}
	if !g.park(gateParked) || !quiet(g) {
		t.Error("a finishing gate could not be parked")
	}
	g.set(gateParked) // no change
	for range 2 {
		wait(t, told, "word of a change")
	}
	select {
	case <-told:
		t.Error("word of a change that was none")
	default:
	}
}
