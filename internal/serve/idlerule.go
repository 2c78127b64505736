package serve

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

// mayLeave concludes from what net/http does that a connection is idle, with no
// byte of the next request in the server's hands. net/http does not promise that.
// Should a version do otherwise, half a request would be lost with each
// connection that moves in the middle of one. So before the first one moves,
// net/http is watched, with connections in memory; if it does otherwise, none
// moves.

// An idleRule is what is known of that: nothing before the first call of
// idleRuleHolds.
type idleRule struct {
	once  sync.Once
	check func() error // nil: watchServer with net/http's Serve
	holds bool
}

// idleRuleHolds watches net/http at the first call.
func (h *Host) idleRuleHolds() bool {
	r := &h.rule
	r.once.Do(func() {
		check := r.check
		if check == nil {
			check = func() error { return watchServer((*http.Server).Serve) }
		}
		err := check()
		if r.holds = err == nil; !r.holds {
			h.Log.Warn("grace: no connection of net/http is moved: it does not do what is needed to know that one is idle", "err", err)
		}
	})
	return r.holds
}

// rulePatience is how long each step may take; all of them together take less
// than a millisecond.
const rulePatience = 5 * time.Second

// watchServer serves connections with serve; its error tells in which way serve
// does not do what mayLeave and mustLeave assume.
func watchServer(serve func(*http.Server, net.Listener) error) error {
	for _, t := range []struct {
		name string
		run  func(*watch) error
	}{
		{"a new connection", func(w *watch) error { return w.leaves() }},
		{"requests sent byte by byte", watchBytes},
		{"half a request in the server's buffer", watchPipelined},
		{"an idle connection", watchIdle},
	} {
		w := newWatch(serve)
		err := t.run(w)
		w.end()
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func watchBytes(w *watch) error {
	const request = "GET /a HTTP/1.1\r\nHost: grace\r\n\r\n"
	for range 2 { // a new connection, and an idle one
		for i := range len(request) {
			if err := w.readsOn(); err != nil {
				return err
			}
			if i > 0 {
				w.conn.Track.Offer(w.mover)
			}
			if w.conn.IsLeaving() {
				return errLeaves
			}
			if err := w.send(request[i : i+1]); err != nil {
				return err
			}
		}
		if err := w.handles(); err != nil {
			return err
		}
		w.conn.Track.Offer(nil)
		if err := w.answers(); err != nil {
			return err
		}
	}
	return nil
}

func watchPipelined(w *watch) error {
	const request = "GET /a HTTP/1.1\r\nHost: grace\r\n\r\n"
	// The rest begins with a whole line: once it is read, the buffer is empty.
	half := strings.Index(request, "Host")
	if err := w.send(request + request[:half]); err != nil {
		return err
	}
	if err := w.handles(); err != nil {
		return err
	}
	w.conn.Track.Offer(w.mover)
	if err := w.answers(); err != nil {
		return err
	}
	if err := w.readsOn(); err != nil {
		return err
	}
	if w.conn.IsLeaving() {
		return errLeaves
	}
	w.conn.Track.Offer(nil)
	if err := w.send(request[half:]); err != nil {
		return err
	}
	if err := w.serves(); err != nil {
		return err
	}
	w.conn.Track.Offer(w.mover)
	return w.left()
}

func watchIdle(w *watch) error {
	if err := w.send("GET /a HTTP/1.1\r\nHost: grace\r\n\r\n"); err != nil {
		return err
	}
	if err := w.serves(); err != nil {
		return err
	}
	return w.leaves()
}

var errLeaves = errors.New("it is taken for an idle one")

// A ruleEvent is something that a server has done.
type ruleEvent int

const (
	ruleRead   ruleEvent = iota // it reads from the connection
	ruleHandle                  // it has called the handler
	ruleAnswer                  // the client has the answer
	ruleEnd                     // the client sees the end, and nothing before it
	ruleNoise                   // the client sees something that is no answer
	ruleLeave                   // it closes a connection that is to move
	ruleClose                   // it closes another
)

func (e ruleEvent) String() string {
	return [...]string{
		"a read", "a call of the handler", "an answer", "the end of the answers", "bytes that are no answer",
		"the end of a connection that is to move", "the end of the connection",
	}[e]
}

// A watch serves one connection.
type watch struct {
	conn   *sockets.MemConn
	client net.Conn
	mover  *sockets.Mover // moves nothing
	srv    *http.Server
	events chan ruleEvent
	reads  atomic.Int32  // how many have begun, without those that only notice that the client goes
	seen   int32         // how many of them were seen
	answer chan struct{} // lets the handler return
	over   chan struct{}
}

func newWatch(serve func(*http.Server, net.Listener) error) *watch {
	w := &watch{mover: &sockets.Mover{}, events: make(chan ruleEvent, 100), answer: make(chan struct{}), over: make(chan struct{})}
	w.conn, w.client = sockets.NewMemConn(func(n int) {
		if n > 1 {
			w.reads.Add(1)
			w.tell(ruleRead)
		}
	}, func(leaving bool) {
		if leaving {
			w.tell(ruleLeave)
			w.conn.Conn.Close()
		} else {
			w.tell(ruleClose)
		}
	})
	s := &httpServer{foreign: map[net.Conn]*foreigner{}, wrapped: map[net.Conn]*sockets.Track{}}
	s.handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		w.tell(ruleHandle)
		select {
		case <-w.answer:
		case <-w.over:
		}
	})
	w.srv = &http.Server{Handler: s, ConnState: s.connState, ErrorLog: log.New(io.Discard, "", 0)}
	go serve(w.srv, &oneConn{c: w.conn, over: w.over})
	go w.receive()
	return w
}

// receive reads as the client.
func (w *watch) receive() {
	in := bufio.NewReader(w.client)
	for {
		if _, err := in.Peek(1); err != nil {
			w.tell(ruleEnd)
			return
		}
		resp, err := http.ReadResponse(in, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		if err != nil || resp.StatusCode != http.StatusOK || resp.Close {
			w.tell(ruleNoise)
			return
		}
		w.tell(ruleAnswer)
	}
}

func (w *watch) tell(e ruleEvent) {
	select {
	case w.events <- e:
	case <-w.over:
	}
}

func (w *watch) end() {
	close(w.over)
	w.client.Close()
	w.srv.Close()
}

// want waits for what the server must do next; it may read before that.
func (w *watch) want(want ruleEvent) error {
	limit := time.NewTimer(rulePatience)
	defer limit.Stop()
	for {
		select {
		case got := <-w.events:
			switch {
			case got == want:
				return nil
			case got != ruleRead:
				return fmt.Errorf("%v, in place of %v", got, want)
			}
		case <-limit.C:
			return fmt.Errorf("%v does not come", want)
		}
	}
}

// readsOn waits until the server reads once more.
func (w *watch) readsOn() error {
	limit := time.NewTimer(rulePatience)
	defer limit.Stop()
	for {
		if n := w.reads.Load(); n > w.seen {
			w.seen = n
			return nil
		}
		select {
		case got := <-w.events:
			if got != ruleRead {
				return fmt.Errorf("%v, in place of %v", got, ruleRead)
			}
		case <-limit.C:
			return fmt.Errorf("%v does not come", ruleRead)
		}
	}
}

// handles waits until the handler is called. The server reads nothing until that
// returns.
func (w *watch) handles() error {
	err := w.want(ruleHandle)
	w.seen = w.reads.Load()
	return err
}

// answers lets the handler return, and waits for the answer.
func (w *watch) answers() error {
	w.answer <- struct{}{}
	return w.want(ruleAnswer)
}

func (w *watch) serves() error {
	if err := w.handles(); err != nil {
		return err
	}
	return w.answers()
}

// leaves lets the connection move while the server waits for a request.
func (w *watch) leaves() error {
	if err := w.readsOn(); err != nil {
		return err
	}
	w.conn.Track.Offer(w.mover)
	return w.left()
}

// left waits until the server has closed the connection so that it moves, and
// has told the client nothing.
func (w *watch) left() error {
	if err := w.want(ruleLeave); err != nil {
		return err
	}
	return w.want(ruleEnd)
}

// send sends s. In memory a write ends when the server has read all of it.
func (w *watch) send(s string) error {
	w.client.SetWriteDeadline(time.Now().Add(rulePatience))
	_, err := io.WriteString(w.client, s)
	return err
}

// A oneConn is a listener that gives one connection.
type oneConn struct {
	mu   sync.Mutex // guards c
	c    net.Conn
	over <-chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.c
	l.c = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-l.over
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
