//go:build unix

package sockets

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/gate"
	"github.com/julofinance/grace/v3/internal/testing/logtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

var reusable = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(cerr, err)
}}

// A socket with SO_REUSEPORT gets no connection before its process is ready, but
// has its address, and says if that is taken, when Listen returns.
func TestReusePortListensWhenReady(t *testing.T) {
	for _, bind := range []struct{ network, addr, dial string }{
		{"tcp", "127.0.0.1:0", "127.0.0.1"}, {"tcp4", ":0", "127.0.0.1"}, {"tcp", ":0", "127.0.0.1"}, {"tcp", "0.0.0.0:0", "127.0.0.1"},
		{"tcp", "localhost:0", "localhost"}, {"tcp6", "[::1]:0", "::1"}, {"tcp6", ":0", "::1"},
	} {
		t.Run(bind.network+" "+bind.addr, func(t *testing.T) {
			plain, err := net.Listen(bind.network, bind.addr)
			if err != nil {
				t.Skip(err) // no IPv6
			}
			defer plain.Close()
			s := New(nil, 0)
			_, port, _ := net.SplitHostPort(plain.Addr().String())
			host, _, _ := net.SplitHostPort(bind.addr)
			if _, err := s.Listen(reusable, bind.network, net.JoinHostPort(host, port)); !errors.Is(err, syscall.EADDRINUSE) ||
				strings.Count(fmt.Sprint(err), "grace: ") != 1 {
				t.Errorf("the address is taken, and Listen says %v", err)
			}
			l, err := s.Listen(reusable, bind.network, bind.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			// As net itself binds.
			was, now := plain.Addr().(*net.TCPAddr), l.Addr().(*net.TCPAddr)
			if !was.IP.Equal(now.IP) || now.Port == 0 {
				t.Errorf("bound to %v; net binds to %v", now, was)
			}
			to := net.JoinHostPort(bind.dial, fmt.Sprint(now.Port))
			if c, err := net.DialTimeout("tcp", to, wait.Limit); err == nil {
				c.Close()
				t.Error("a socket that no process accepts on yet takes connections")
			}
			if err := s.OpenGates(); err != nil {
				t.Fatal(err)
			}
			c, err := net.DialTimeout("tcp", to, wait.Limit)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			a.Close()
			// And one that comes when all is open listens at once.
			second, err := s.Listen(reusable, bind.network, net.JoinHostPort(host, fmt.Sprint(now.Port)))
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			if !second.Sock.listens() {
				t.Error("a socket that was opened after Ready does not listen")
			}
		})
	}
}

// Another process that has the socket ends it for all with shutdown(2), and ours
// is opened again: while it accepts, and when it was rolled back.
func TestListenerThatWasShutDownIsOpenedAgain(t *testing.T) {
	dir := t.TempDir()
	for _, at := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:0"}, {"tcp4", ":0"}, {"unix", filepath.Join(dir, "s")}, {"unixpacket", filepath.Join(dir, "p")}, {"unix", "@" + dir},
	} {
		for _, when := range []string{"while it accepts", "before it accepts again"} {
			t.Run(at.network+" "+when, func(t *testing.T) {
				s := New(nil, 0)
				l, err := s.Listen(net.ListenConfig{}, at.network, at.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if err := s.OpenGates(); err != nil {
					t.Fatal(err)
				}
				handed := s.ToHandOver()
				served := make(chan error, 1)
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							served <- err
							return
						}
						fmt.Fprint(c, "mine")
						c.Close()
					}
				}()
				if got := ask(t, l.Addr()); got != "mine" {
					t.Fatalf("the answer is %q", got)
				}
				back := func() {}
				if strings.HasPrefix(at.network, "unix") {
					back = s.MendAll // accept(2) says nothing: as when the new process is dead
				}
				if when != "while it accepts" {
					s.Yield(handed, []int{0})
					back = s.ReopenGates
				}
				l.Sock.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
				if err != nil {
					t.Fatal(err)
				}
				back()
				wait.Until(t, "a listener that listens again", func() bool { return l.Gate.IsOpen() && l.Sock.listens() })
				if got := ask(t, l.Addr()); got != "mine" {
					t.Errorf("the answer is %q", got)
				}
				select {
				case err := <-served:
					t.Errorf("Accept returned %v", err)
				default:
				}
			})
		}
	}
}

// What a drain has closed is opened again where it can be, as it was; where it
// can't, that is tried until it works, and Accept waits meanwhile.
func TestParkedListenerIsOpenedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, taken := range []bool{false, true} {
		for _, at := range []struct{ network, addr string }{{"tcp", "127.0.0.1:0"}, {"unix", path}, {"tcp", "reuseport"}} {
			t.Run(fmt.Sprintf("%s %s, taken %v", at.network, filepath.Base(at.addr), taken), func(t *testing.T) {
				s, lc, addr := New(nil, 0), net.ListenConfig{}, at.addr
				if addr == "reuseport" {
					lc, addr = reusable, "127.0.0.1:0"
				}
				l, err := s.Listen(lc, at.network, addr)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if l.Sock.Path != "" {
					os.Chmod(path, 0o640)
				}
				log := logtest.New(func(slog.Record) {})
				s.Log = slog.New(log)
				says := func(text string) func() bool {
					return func() bool { return strings.Contains(strings.Join(log.Lines(), "\n"), text) }
				}
				s.OpenGates()
				s.ToHandOver()
				accepted := make(chan error, 9)
				go func() {
					for {
						c, err := l.Accept()
						accepted <- err
						if err != nil {
							return
						}
						c.Close()
					}
				}()
				s.Yield(s.Snapshot(), nil)
				s.EndAccept()
				wait.Until(t, "the end of the queue", func() bool { return l.Finished() })
				if c, err := net.Dial(at.network, l.Addr().String()); err == nil {
					c.Close()
					t.Fatal("the dropped listener still takes connections")
				}
				var other net.Listener
				if taken {
					if other, err = net.Listen(at.network, l.Addr().String()); err != nil {
						t.Fatal(err)
					}
				}
				s.ReopenGates()
				s.Settled(t.Context())
				if taken {
					if l.Gate.IsOpen() {
						t.Error("it was opened while another one has the address")
					}
					wait.Until(t, "a line that says so", says("a listener can't be opened again"))
					other.Close()
				}
				wait.Until(t, "a listener that is open again", func() bool { return l.Gate.IsOpen() })
				wait.Until(t, "a line that says so", says("a listener was opened again"))
				c, err := net.Dial(at.network, l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := wait.For(t, accepted, "an Accept"); err != nil {
					t.Errorf("Accept returned %v", err)
				}
				if l.Sock.Path != "" {
					if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o640 {
						t.Errorf("the path came back as %v, error %v; want mode 0640", fi, err)
					}
				}
			})
		}
	}
}

// The upgrade after a failed one waits until each listener was looked at: also for
// one that the program has closed right then.
func TestMendingOfAClosedListenerIsOver(t *testing.T) {
	s := New(nil, 0)
	l, err := s.Listen(net.ListenConfig{}, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.OpenGates()
	s.ToHandOver()
	s.mu.Lock()
	l.Gate.Set(gate.Closed)
	s.mend(l.Sock)
	tried := l.Sock.mending.tried
	s.mu.Unlock()
	wait.For(t, tried, "the end of the first try")
	l.Close()
}

// A listener is being mended when the new process says that it accepts: it is the new
// one's, and opens not before a roll back.
func TestMendingOfWhatNewHasTaken(t *testing.T) {
	for _, when := range []string{"before it is looked at", "when it is opened"} {
		t.Run(when, func(t *testing.T) {
			s := New(nil, 0)
			l, err := s.Listen(net.ListenConfig{}, "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := s.OpenGates(); err != nil {
				t.Fatal(err)
			}
			handed := s.ToHandOver()
			l.Sock.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
			if err != nil {
				t.Fatal(err)
			}
			opening, goOn := make(chan struct{}), make(chan struct{})
			open := l.Open
			l.reopening.Lock()
			if when == "when it is opened" {
				l.Open = func() (Opened, error) {
					close(opening)
					<-goOn
					return open()
				}
				l.reopening.Unlock()
			}
			s.MendAll()
			if when == "when it is opened" {
				wait.For(t, opening, "the mending")
				l.Open = open
			}
			s.Yield(handed, []int{0})
			if when == "when it is opened" {
				close(goOn)
			} else {
				l.reopening.Unlock()
			}
			wait.Until(t, "the end of the mending", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return l.Sock.mending == nil
			})
			if l.Gate.IsOpen() {
				t.Error("this process accepts, and so does the new one")
			}
			s.ReopenGates()
			wait.Until(t, "a listener that listens again", func() bool { return l.Gate.IsOpen() && l.Sock.listens() })
		})
	}
}

// One listener that can't listen when its process is ready: no other one accepts,
// and what the old process has stays its own.
func TestGatesOpenAllOrNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := New(nil, 0)
	good, err := s.Listen(net.ListenConfig{}, "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	good.Sock.Index = 0 // as if the old process had it
	s.Own(false)
	bad, err := s.Listen(reusable, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bad.letGo()
	if err := s.OpenGates(); err == nil {
		t.Fatal("a socket that is closed listens")
	}
	if good.Gate.IsOpen() {
		t.Error("the other listener accepts, in a process that is not ready")
	}
	good.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the path of the old process's socket is gone: %v", err)
	}
	bad.Close()
}

// A socket with SO_REUSEPORT that the program opens after the hand-over listens as
// soon as that is rolled back, before anything has to be mended.
func TestOpenedAfterTheHandOver(t *testing.T) {
	s := New(nil, 0)
	s.OpenGates()
	s.Yield(nil, nil)
	l, err := s.Listen(reusable, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Sock.listens() {
		t.Error("it listens, and the new process is the one that serves")
	}
	l.reopening.Lock() // nothing is mended
	s.ReopenGates()
	listens := l.Sock.listens()
	l.reopening.Unlock()
	if !listens || !l.Gate.IsOpen() {
		t.Errorf("after the roll back it listens: %v, and accepts: %v", listens, l.Gate.IsOpen())
	}
}

// An old process that stands by opens nothing: a listener that it has still tried
// to open again since a roll back before stays closed until the next one.
func TestMendingEndsAtTheHandOver(t *testing.T) {
	s := New(nil, 0)
	l, err := s.Listen(reusable, "tcp", "127.0.0.1:0") // which two processes may open
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open, tries := l.Open, make(chan chan bool, 9)
	l.Open = func() (Opened, error) {
		try := make(chan bool)
		tries <- try
		if !<-try {
			return Opened{}, errors.New("not yet")
		}
		return open()
	}
	s.OpenGates()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "old")
			c.Close()
		}
	}()
	s.ToHandOver()
	s.Yield(s.Snapshot(), nil)
	s.EndAccept()
	wait.Until(t, "the end of the queue", l.Finished)
	s.ReopenGates()
	wait.For(t, tries, "a try to open it again") <- false
	late := wait.For(t, tries, "the next try")
	s.Yield(nil, nil) // the next upgrade, whose manifest has no listener that is closed
	late <- true
	wait.Until(t, "the end of the mending", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return l.Sock.mending == nil })
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil || !l.Gate.IsShut() {
		if err == nil {
			c.Close()
		}
		t.Errorf("a process that stands by has opened a listener: dial error %v, gate shut %v", err, l.Gate.IsShut())
	}
	s.ReopenGates()
	wait.For(t, tries, "a try after the next roll back") <- true
	wait.Until(t, "a listener that is open again", l.Gate.IsOpen)
	if got := ask(t, l.Addr()); got != "old" {
		t.Errorf("the answer is %q", got)
	}
}
