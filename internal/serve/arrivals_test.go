//go:build unix

package serve

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A scriptedConn says each step that is done with it, and is nothing else.
type scriptedConn struct {
	net.Conn
	step func(string)

	mu          sync.Mutex
	read, write time.Time
	sets        chan time.Time // read deadlines; may be nil
	closed      chan struct{}
	once        sync.Once
}

func (c *scriptedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.read = t
	c.mu.Unlock()
	if c.sets != nil {
		c.sets <- t
	}
	if t.IsZero() {
		c.step("no deadline")
	} else {
		c.step("deadline")
	}
	return nil
}

func (c *scriptedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return nil
}

func (c *scriptedConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *scriptedConn) Close() error         { c.once.Do(func() { close(c.closed) }); return nil }
func (c *scriptedConn) LocalAddr() net.Addr  { return &net.IPAddr{} }
func (c *scriptedConn) RemoteAddr() net.Addr { return &net.IPAddr{} }

func (c *scriptedConn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// HandshakeContext makes it a handshaker.
func (c *scriptedConn) HandshakeContext(context.Context) error {
	c.step("handshake")
	if c.isClosed() {
		return net.ErrClosed
	}
	return nil
}

func (c *scriptedConn) ConnectionState() tls.ConnectionState { return tls.ConnectionState{} }

func newScripted(step func(string)) *scriptedConn {
	return &scriptedConn{step: step, closed: make(chan struct{})}
}

// TestBoundOfArrivals: the bound of a connection of which nothing is known yet comes at
// any moment of its way through the door, with a roll back right after it, right before
// it, or without one. It is closed and no server serves it, or it is served, open, and
// without any deadline that is not the server's.
func TestBoundOfArrivals(t *testing.T) {
	for _, at := range []string{"deadline", "handshake", "no deadline", "settled"} {
		for _, back := range []string{"never", "before", "after"} {
			t.Run(at+", rolled back "+back, func(t *testing.T) {
				u, ln := newProcess(t)
				defer wait.For(t, u.Done(), "Done")
				defer u.askStop()
				s := u.httpServer(&http.Server{ReadHeaderTimeout: time.Hour, ErrorLog: log.New(io.Discard, "", 0)})
				d := NewDrain(nil)
				s.draining.Store(d)
				door := newDoor(s, ln)
				var c *scriptedConn
				bound := func() {
					if back == "before" {
						d.cancel()
					}
					s.endArrival(c, d)
					if back == "after" {
						d.cancel()
					}
				}
				c = newScripted(func(step string) {
					if step == at {
						bound()
					}
				})
				s.arrivals.add(c, t.Context())
				over := make(chan struct{})
				go func() {
					door.attend(c, func() (bool, error) { return door.handshake(t.Context(), c) })
					close(over)
				}()
				served := false
				select {
				case a := <-door.out:
					served = true
					if at == "settled" {
						bound()
					}
					if a.conn != c {
						t.Errorf("the server gets %v", a.conn)
					}
				case <-over:
				case <-time.After(wait.Limit):
					t.Fatal("the connection is neither served nor ended")
				}
				wait.For(t, over, "the door to be done with it")
				if want := at == "settled" || back == "before"; served != want {
					t.Errorf("it is served: %v, want %v", served, want)
				}
				if c.isClosed() == served {
					t.Errorf("it is served: %v, and closed: %v", served, c.isClosed())
				}
				if served && (!c.read.IsZero() || !c.write.IsZero()) {
					t.Errorf("the server gets it with the deadlines %v and %v", c.read, c.write)
				}
			})
		}
	}
}

// TestBoundRacesWithArrival: both at the same moment, again and again, and a roll
// back as well.
func TestBoundRacesWithArrival(t *testing.T) {
	u, ln := newProcess(t)
	defer wait.For(t, u.Done(), "Done")
	defer u.askStop()
	s := u.httpServer(&http.Server{ReadHeaderTimeout: time.Hour, ErrorLog: log.New(io.Discard, "", 0)})
	door := newDoor(s, ln)
	ends := 0
	for i := range 3000 {
		d := NewDrain(nil)
		s.draining.Store(d)
		c := newScripted(func(string) {})
		s.arrivals.add(c, t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.endArrival(c, d) })
		wg.Go(func() {
			if i%3 == 0 {
				d.cancel()
			}
		})
		over := make(chan struct{})
		wg.Go(func() {
			defer close(over)
			door.attend(c, func() (bool, error) { return door.handshake(t.Context(), c) })
		})
		served := false
		select {
		case <-door.out:
			served = true
		case <-over:
			ends++
		}
		wg.Wait()
		s.arrivals.remove(c)
		if c.isClosed() == served || served && (!c.read.IsZero() || !c.write.IsZero()) {
			t.Fatalf("it is served: %v, closed: %v, deadlines %v and %v", served, c.isClosed(), c.read, c.write)
		}
	}
	t.Logf("%d of 3000 were ended", ends)
}

// TestBoundOfForeigners: a connection of which nothing is known has a deadline of
// ours when it was idle for too long, again if the server undoes it, and not any
// more once it turns out that a request was faster, or that the drain was called
// off: then it has the server's own.
func TestBoundOfForeigners(t *testing.T) {
	within := func(got, want time.Time) bool { return got.Sub(want).Abs() < wait.Limit }
	for _, c := range []struct {
		name  string
		srv   *http.Server
		from  http.ConnState
		then  string
		http2 bool
		want  time.Duration // from when it was in that state; 0: no deadline
	}{
		{"new, a request", &http.Server{}, http.StateNew, "active", false, 0},
		{"new, a request with a timeout", &http.Server{ReadTimeout: 2 * time.Hour}, http.StateNew, "active", false, 2 * time.Hour},
		{"idle, a request with a timeout", &http.Server{ReadTimeout: 2 * time.Hour, IdleTimeout: 5 * time.Hour}, http.StateIdle, "active", false, 2 * time.Hour},
		{"idle, a stream of HTTP/2", &http.Server{ReadTimeout: 2 * time.Hour}, http.StateIdle, "active", true, 0},
		{"new, rolled back", &http.Server{ReadHeaderTimeout: 3 * time.Hour, ReadTimeout: 2 * time.Hour}, http.StateNew, "back", false, 3 * time.Hour},
		{"idle, rolled back", &http.Server{ReadTimeout: 2 * time.Hour, IdleTimeout: 5 * time.Hour}, http.StateIdle, "back", false, 5 * time.Hour},
		{"idle, rolled back, no timeout", &http.Server{}, http.StateIdle, "back", false, 0},
		{"idle, and undone by the server", &http.Server{IdleTimeout: 5 * time.Hour}, http.StateIdle, "undone", false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u, _ := newProcess(t, idle(time.Millisecond))
			defer wait.For(t, u.Done(), "Done")
			defer u.askStop()
			s := u.httpServer(c.srv)
			conn := newScripted(func(string) {})
			conn.sets = make(chan time.Time, 1000)
			defer s.foreignState(conn, http.StateClosed)
			s.foreignState(conn, http.StateNew)
			if c.http2 {
				s.foreignHTTP2(conn)
			}
			if c.from == http.StateIdle {
				s.foreignState(conn, http.StateActive)
				s.foreignState(conn, http.StateIdle)
			}
			d := NewDrain(nil)
			s.draining.Store(d)
			s.endAllIdleForeign()
			if got := wait.For(t, conn.sets, "the bound"); !got.Equal(gate.LongAgo) {
				t.Fatalf("the bound is %v, want %v", got, gate.LongAgo)
			}
			switch c.then {
			case "active":
				s.foreignState(conn, http.StateActive)
			case "back":
				d.cancel()
				s.Resume()
			case "undone":
				conn.mu.Lock()
				conn.read = time.Time{}
				conn.mu.Unlock()
				if got := wait.For(t, conn.sets, "the bound once more"); !got.Equal(gate.LongAgo) {
					t.Errorf("the bound is %v, want %v", got, gate.LongAgo)
				}
				return
			}
			conn.mu.Lock()
			got := conn.read
			conn.mu.Unlock()
			if c.want == 0 && !got.IsZero() || c.want != 0 && !within(got, time.Now().Add(c.want)) {
				t.Errorf("it goes on with the deadline %v, want %v from now", got, c.want)
			}
			// Nothing sets another one from now on, whatever was on its way.
			s.mu.Lock()
			bounded := s.foreign[conn].bounded
			s.mu.Unlock()
			if bounded {
				t.Error("it counts as bounded still")
			}
		})
	}
}

// TestSilentClientAndRollBack: a drain is called off at the very moment at which
// the time of a client is up that has connected and said nothing. Its connection
// has ended, or all that it asks then is answered.
func TestSilentClientAndRollBack(t *testing.T) {
	cert, trusting := tlstest.Certificate(t)
	trusting = trusting.Clone()
	trusting.ServerName = "127.0.0.1"
	for _, https := range []bool{false, true} {
		t.Run(map[bool]string{false: "h2c", true: "TLS"}[https], func(t *testing.T) {
			u, ln := newProcess(t, idle(time.Millisecond))
			met := make(chan struct{}, 1000)
			srv := &http.Server{
				Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "answer") }),
				ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
				ConnState: func(_ net.Conn, state http.ConnState) {
					if state == http.StateNew {
						met <- struct{}{}
					}
				},
			}
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
			execute := u.HTTP(srv, ln)
			if https {
				execute = u.HTTPS(srv, ln, "", "")
			}
			u.run(t, execute)
			defer wait.For(t, u.Done(), "Done")
			defer u.askStop()
			s := u.httpServer(srv)
			answered := 0
			const tries = 30
			for range tries {
				conn := dialSolo(t, ln.Addr().String())
				wait.For(t, met, "a new connection")
				d := NewDrain(nil)
				drained := make(chan Report, 1)
				go func() { drained <- s.Drain(d) }()
				called := time.AfterFunc(time.Millisecond, d.cancel)
				wait.For(t, drained, "the drain that was called off")
				called.Stop()
				d.cancel()
				s.Resume()
				if https {
					conn = tls.Client(conn, trusting)
				}
				if get(t, conn) {
					answered++
				}
				conn.Close()
			}
			t.Logf("%d of %d were answered", answered, tries)
		})
	}
}

// get asks twice; false if the connection has ended before the first answer.
func get(t *testing.T, c net.Conn) bool {
	t.Helper()
	for i := range 2 {
		_, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
		if err == nil {
			err = readAnswer(c)
		}
		var ne net.Error
		switch {
		case err == nil:
		case i == 0 && !(errors.As(err, &ne) && ne.Timeout()):
			return false
		default:
			t.Fatalf("answer %d: %v", i, err)
		}
	}
	return true
}

func readAnswer(c net.Conn) error {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return err
}
