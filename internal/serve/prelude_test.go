package serve

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// A step of a client: after a pause it sends something.
type step struct {
	pause time.Duration
	send  string
}

func (s step) String() string { return fmt.Sprintf("%v %q", s.pause, s.send) }

// A story is what happens to one connection, in virtual time and in memory. Both ends
// are real: net/http and what is ours of a connection.
type story struct {
	srv    func(*http.Server) // sets timeouts and limits
	next   func(*http.Server) // the same of the servers that it moves to; nil for srv
	before []step             // up to the moment at which it moves
	after  []step
	moves  int // how often it moves, then a second later again
}

// live gives what the client has received, and when, up to the end.
func (l story) live(t *testing.T) string {
	var got transcript
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(l.srv)
		defer w.end()
		got.begun = time.Now()
		received := make(chan struct{})
		go func() {
			got.receive(w.client)
			close(received)
		}()
		w.send(l.before)
		for range max(1, l.moves) {
			synctest.Wait()
			if l.moves > 0 {
				if l.next != nil {
					w.set = l.next
				}
				w.move(t)
			}
			time.Sleep(time.Second)
		}
		w.send(l.after)
		select {
		case <-received:
		case <-time.After(time.Hour):
			w.client.Close()
			<-received
			got.add("cut by the test")
		}
	})
	return got.String()
}

// A world is a client's connection and the servers through which it goes.
type world struct {
	client net.Conn
	conn   *sockets.MemConn
	set    func(*http.Server)
	left   chan bool
	over   chan struct{}
	srvs   []*http.Server
}

func newWorld(set func(*http.Server)) *world {
	w := &world{set: set, left: make(chan bool, 1), over: make(chan struct{})}
	w.conn, w.client = sockets.NewMemConn(func(int) {}, w.closed)
	w.serve()
	return w
}

func (w *world) closed(leaving bool) {
	select {
	case w.left <- leaving:
	default:
	}
}

// serve gives the connection to a new server.
func (w *world) serve() {
	s := &httpServer{foreign: map[net.Conn]*foreigner{}, wrapped: map[net.Conn]*sockets.Track{}}
	s.handler = http.HandlerFunc(tellRequest)
	srv := &http.Server{Handler: s, ConnState: s.connState, ErrorLog: log.New(io.Discard, "", 0)}
	w.set(srv)
	w.srvs = append(w.srvs, srv)
	go srv.Serve(&oneConn{c: w.conn, over: w.over})
	synctest.Wait()
}

// move moves the connection to another server, as mover and receiver do, unless
// its server has closed it.
func (w *world) move(t *testing.T) {
	select {
	case <-w.left:
		w.left <- false
		return
	default:
	}
	w.conn.Track.Offer(&sockets.Mover{})
	if !<-w.left {
		t.Error("it did not move")
		w.left <- false
		return
	}
	next, err := w.conn.MoveOn(w.closed)
	if err != nil {
		t.Fatal(err)
	}
	w.conn = next
	w.serve()
}

func (w *world) send(steps []step) {
	for _, s := range steps {
		time.Sleep(s.pause)
		w.client.SetWriteDeadline(time.Now().Add(time.Minute))
		io.WriteString(w.client, s.send)
	}
}

func (w *world) end() {
	close(w.over)
	w.client.Close()
	for _, srv := range w.srvs {
		srv.Close()
	}
}

// tellRequest answers with what it has read, and when.
func tellRequest(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	b, err := io.ReadAll(r.Body)
	if wait, bad := time.ParseDuration(r.Header.Get("Wait")); bad == nil {
		time.Sleep(wait)
	}
	fmt.Fprintf(w, "%s %s %v %d %v after %v; context: %v", r.Method, r.RequestURI, r.Header, len(b), err, time.Since(begun), r.Context().Err())
}

// A transcript is what a client has received.
type transcript struct {
	begun time.Time
	parts []string
	at    []time.Duration
}

func (tr *transcript) add(s string) {
	now := time.Since(tr.begun)
	if n := len(tr.parts); n > 0 && tr.at[n-1] == now {
		tr.parts[n-1] += s
		return
	}
	tr.parts, tr.at = append(tr.parts, s), append(tr.at, now)
}

func (tr *transcript) receive(c net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		tr.add(string(b[:n]))
		if err != nil {
			tr.add(fmt.Sprintf("[%v]", err))
			return
		}
	}
}

func (tr *transcript) String() string {
	var b strings.Builder
	for i, s := range tr.parts {
		fmt.Fprintf(&b, "%v: %q\n", tr.at[i], s)
	}
	return b.String()
}

// beforesAndAfters gives what clients do before a move and after it.
func beforesAndAfters() (befores, afters map[string][]step) {
	const get, post = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n", "POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
	befores = map[string][]step{
		"new":                 {},
		"new for 1.5 s":       {{1510 * time.Millisecond, ""}},
		"after a GET":         {{0, get}},
		"idle for 2.5 s":      {{0, get}, {2530 * time.Millisecond, ""}},
		"after a POST":        {{0, post}},
		"after several, late": {{0, get + post}, {1010 * time.Millisecond, get}, {530 * time.Millisecond, ""}},
	}
	afters = map[string][]step{
		"silent":             {},
		"three bytes":        {{570 * time.Millisecond, "GET"}},
		"half a header":      {{570 * time.Millisecond, "GET /two HT"}, {1110 * time.Millisecond, "TP/1.1\r\nHo"}},
		"half a body":        {{720 * time.Millisecond, "POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"}},
		"slow header":        {{940 * time.Millisecond, "GE"}, {410 * time.Millisecond, "T /two HTT"}, {1330 * time.Millisecond, "P/1.1\r\nHost: a\r\n\r\n"}},
		"slow body":          {{130 * time.Millisecond, "POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\na"}, {1230 * time.Millisecond, "b"}, {1230 * time.Millisecond, "cd"}},
		"late and slow":      {{3370 * time.Millisecond, "P"}, {140 * time.Millisecond, "OST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\na"}, {1230 * time.Millisecond, "bcd"}},
		"slow handler":       {{1160 * time.Millisecond, "GET /two HTTP/1.1\r\nHost: a\r\nWait: 2s\r\n\r\n"}},
		"slower handler":     {{130 * time.Millisecond, "GET /two HTTP/1.1\r\nHost: a\r\nWait: 5s\r\n\r\n"}},
		"a newline too many": {{130 * time.Millisecond, "\r\n" + get}, {140 * time.Millisecond, get}},
		"newlines":           {{130 * time.Millisecond, "\r\n"}, {140 * time.Millisecond, "\r\n\r\n\r\n"}, {140 * time.Millisecond, get}},
		"two more":           {{250 * time.Millisecond, get}, {1970 * time.Millisecond, post}},
		"HTTP/2 at last":     {{250 * time.Millisecond, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}},
	}
	return befores, afters
}

// TestMovedAsUnmoved: with whatever timeouts, what a client of a connection that
// was moved sees, and when, is what it would see of one that was not.
func TestMovedAsUnmoved(t *testing.T) {
	befores, afters := beforesAndAfters()
	sets := []func(*http.Server){func(srv *http.Server) { // compat/v1's defaults
		srv.ReadTimeout, srv.WriteTimeout = 5*time.Second, 10*time.Second
	}}
	for bits := range 1 << 4 {
		for _, longIdle := range []bool{false, true} {
			if longIdle && bits>>3 == 0 {
				continue
			}
			sets = append(sets, func(srv *http.Server) {
				for i, d := range []*time.Duration{&srv.ReadTimeout, &srv.ReadHeaderTimeout, &srv.WriteTimeout, &srv.IdleTimeout} {
					if bits>>i&1 == 1 {
						*d = []time.Duration{3001, 2203, 4107, 3719}[i] * time.Millisecond
					}
				}
				if longIdle {
					srv.IdleTimeout = time.Minute
				}
			})
		}
	}
	for _, set := range sets {
		for b, before := range befores {
			for a, after := range afters {
				want := story{srv: set, before: before, after: after}.live(t)
				for moves := 1; moves <= 2; moves++ {
					l := story{srv: set, before: before, after: after, moves: moves}
					if moves == 2 { // as long on the way
						want = story{srv: set, before: before, after: append([]step{{time.Second, ""}}, after...)}.live(t)
					}
					if got := l.live(t); got != want {
						var srv http.Server
						set(&srv)
						t.Errorf("%s, then moved %d times, then %s; read %v header %v write %v idle %v\ngot\n%swant\n%s", b, moves, a,
							srv.ReadTimeout, srv.ReadHeaderTimeout, srv.WriteTimeout, srv.IdleTimeout, got, want)
					}
				}
			}
		}
	}
}

// TestMovedToOtherTimeouts: a connection that waits between two requests, or for its
// first one, and moves to a server of another ReadTimeout or WriteTimeout has the rest of
// its wait, and from then on what an unmoved connection of that server has.
func TestMovedToOtherTimeouts(t *testing.T) {
	befores, afters := beforesAndAfters()
	reads := []time.Duration{0, 1301 * time.Millisecond, 3001 * time.Millisecond}
	writes := []time.Duration{0, 1409 * time.Millisecond, 3203 * time.Millisecond}
	set := func(read, write time.Duration) func(*http.Server) {
		return func(srv *http.Server) { // as long as it may wait is the same in both
			srv.ReadTimeout, srv.WriteTimeout = read, write
			srv.ReadHeaderTimeout, srv.IdleTimeout = 2203*time.Millisecond, time.Minute
		}
	}
	for _, read := range reads {
		for _, write := range writes {
			for b, before := range befores {
				for a, after := range afters {
					want := story{srv: set(read, write), before: before, after: after}.live(t)
					for _, oldRead := range reads {
						for _, oldWrite := range writes {
							l := story{srv: set(oldRead, oldWrite), next: set(read, write), before: before, after: after, moves: 1}
							if got := l.live(t); got != want {
								t.Errorf("%s, then moved from read %v write %v to read %v write %v, then %s\ngot\n%swant\n%s",
									b, oldRead, oldWrite, read, write, a, got, want)
							}
						}
					}
				}
			}
		}
	}
}
