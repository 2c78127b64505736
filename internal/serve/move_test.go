//go:build linux

package serve

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// request sends one and gives the answer's body.
func request(t testing.TB, c net.Conn, r *bufio.Reader, body string) string {
	t.Helper()
	req, _ := http.NewRequest("POST", "http://grace/", strings.NewReader(body))
	if err := req.Write(c); err != nil {
		t.Fatalf("send a request: %v", err)
	}
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the answer's body: %v", err)
	}
	return string(b)
}

func wantAnswer(t testing.TB, c net.Conn, r *bufio.Reader, body, want string) {
	t.Helper()
	if got := request(t, c, r, body); got != want {
		t.Errorf("%q answers, want %q", got, want)
	}
}

// A body larger than the server's buffer is read past it, in slices of any size.
func TestMoveAfterLargeBody(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	p.runNew()
	c := p.dial()
	r := bufio.NewReader(c)
	body := strings.Repeat("x", 300<<10)
	wantAnswer(t, c, r, body, "old")
	_, done := p.drain()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, body, "new")
}

// ask gives a client that the old process has answered.
func (p *couple) ask() (net.Conn, *bufio.Reader) {
	p.t.Helper()
	c := p.dial()
	r := bufio.NewReader(c)
	wantAnswer(p.t, c, r, "", "old")
	return c, r
}

// take lets the new process receive what the old one sends next.
func (p *couple) take() {
	p.t.Helper()
	m, err := p.new.ch.Next()
	if err == nil {
		err = p.recv.OnConns(m)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// awaitMoves waits until the mover has n connections on their way.
func (p *couple) awaitMoves(n int) {
	p.t.Helper()
	p.await("connections on their way", func() bool {
		all, _ := p.mover.Pending()
		return all == n
	})
}

func (p *couple) await(what string, cond func() bool) {
	p.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(wait.Limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			p.t.Fatalf("waited %v for %s", wait.Limit, what)
		}
	}
}

// The channel's writer knows a connection by its descriptor's number alone: if
// the program closed it meanwhile, another file would be sent under it.
func TestCloseOfMovingConnection(t *testing.T) {
	p := newCouple(t, saysSide)
	c, r := p.ask()
	_, done := p.drain()
	p.awaitMoves(1) // the channel is not read yet
	moving := wait.For(t, p.old.seen, "the connection")
	if err := moving.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close of a connection on its way: got %v, want %v", err, net.ErrClosed)
	}
	sockets.TrackOf(moving).Cut()
	p.runOld()
	p.runNew()
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
}

// A connection that the new process refuses is served by the old one, and not offered
// again and again: it would never be read.
func TestRefusedConnectionIsServed(t *testing.T) {
	p := newCouple(t, saysSide)
	p.recv.Find = func(int) *sockets.Listener { return nil }
	p.runOld()
	p.runNew()
	c, r := p.ask()
	_, done := p.drain()
	wait.For(t, p.old.seen, "the connection")
	wait.For(t, p.old.seen, "the connection to come back")
	wantAnswer(t, c, r, "", "old")
	wait.For(t, done, "the drain to end")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("moved %d connections, want none", n)
	}
}

// The new process is stopped with a connection in its queue: the old one serves it, and
// closing it ends it for the client, though the new one has a copy. When the new one
// goes on and the old one is dead, the new one knows that the connection is not its
// own.
func TestConnectionThatNewDoesNotTake(t *testing.T) {
	p := newCouple(t, saysSide)
	p.mover.Patience = 100 * time.Millisecond
	p.runOld()
	c, r := p.ask()
	_, done := p.drain()
	wait.For(t, p.old.seen, "the connection")
	wait.For(t, p.old.seen, "the connection to come back")
	wantAnswer(t, c, r, "", "old")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after an answer with Connection: close: got %v, want %v", err, io.EOF)
	}
	wait.For(t, done, "the drain to end")
	p.old.ch.Close()
	gone := make(chan int, 1)
	p.new.ch.Run(func(m control.Message) {
		switch m.Type {
		case sockets.MsgConns:
			p.recv.OnConns(m)
		case sockets.MsgVerdict:
			p.recv.OnVerdict(m)
		}
	}, func(error) { gone <- len(p.recv.Held) })
	if n := wait.For(t, gone, "the old process's death to be seen"); n != 0 {
		t.Errorf("the new process takes %d connections for its own, want none", n)
	}
}

// The new process says that it took a connection, and dies before the old one has read
// that.
func TestNewDiesAfterItTook(t *testing.T) {
	p := newCouple(t, saysSide)
	c, r := p.ask()
	d, done := p.drain()
	dead := make(chan struct{})
	p.old.ch.Run(func(m control.Message) {
		<-dead
		took, refused, _ := sockets.DecodeIDs(m.Payload)
		p.mover.OnTook(took, refused)
	}, func(error) { p.mover.Stop() })
	p.take()
	p.new.ch.Run(func(control.Message) {}, func(error) {})
	p.new.ch.Flush(wait.Limit)
	for _, c := range p.recv.Held {
		c.Conn.Close()
	}
	p.new.ch.Close()
	close(dead)
	wait.For(t, p.old.seen, "the connection")
	wait.For(t, p.old.seen, "the connection to come back")
	d.cancel()
	wait.For(t, done, "the drain to end")
	wantAnswer(t, c, r, "", "old")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("moved %d connections, want none", n)
	}
}

// The new process can't read the channel any more, but the old one lives.
func TestNewGivesUpTheChannel(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	d, done := p.drain()
	m, err := p.new.ch.Next()
	if err != nil {
		t.Fatal(err)
	}
	jam(p.new.ch) // what the new process answers is queued, and never written
	p.recv.OnConns(m)
	p.new.ch.Close()
	wait.For(t, p.old.seen, "the connection")
	wait.For(t, p.old.seen, "the connection to come back")
	p.recv.OnEnd() // the old process dies
	d.cancel()
	wait.For(t, done, "the drain to end")
	wantAnswer(t, c, r, "", "old")
	select {
	case <-p.new.seen:
		t.Error("the new process serves a connection that is the old one's")
	default:
	}
}

// A message that can't be read leaves no descriptor open, nor does one with too many.
func TestBadConnsMessage(t *testing.T) {
	p := newCouple(t, saysSide)
	for _, payload := range [][]byte{
		nil, {1}, sockets.EncodeConns([]*sockets.Moving{{ID: 1, Unread: []byte("xyz")}}).Payload[:sockets.ConnHeader+1],
		// Below 0 as an int of 32 bit.
		binary.BigEndian.AppendUint64(make([]byte, 8), 1<<63), binary.BigEndian.AppendUint64(make([]byte, 8), math.MaxUint64),
	} {
		fd, err := fdtest.InOrder([]int{0})
		if err != nil {
			t.Fatal(err)
		}
		err = p.recv.OnConns(control.Message{Type: sockets.MsgConns, Payload: payload, FDs: []int{fd}})
		if (err == nil) != (len(payload) == 0) {
			t.Errorf("%d bytes: got error %v", len(payload), err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%d bytes: the descriptor is open still", len(payload))
		}
	}
}

// A connection that arrives when its listener is closed, or waits there, is
// closed as the kernel closes those of its queue.
func TestConnectionsOfClosedListener(t *testing.T) {
	_, ln := newProcess(t)
	l := ln.(*sockets.Listener)
	waiting, client := net.Pipe()
	l.Give(waiting)
	l.Close()
	late, other := net.Pipe()
	l.Give(late)
	for _, c := range []net.Conn{client, other} {
		c.SetDeadline(time.Now().Add(wait.Limit))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v, want %v", err, io.EOF)
		}
	}
	if !l.Gate.IsQuiet() {
		t.Error("the listener waits for a connection still")
	}
}

// A client resets its connection while it is on its way: the new process can't tell
// whose it was, and a nil RemoteAddr makes programs panic.
func TestResetConnectionIsRefused(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c := p.dial().(*net.TCPConn)
	wantAnswer(t, c, bufio.NewReader(c), "", "old")
	_, done := p.drain()
	p.awaitMoves(1)
	c.SetLinger(0)
	c.Close()
	m, err := p.new.ch.Next()
	if err != nil {
		t.Fatal(err)
	}
	p.recv.OnConns(m)
	if n := len(p.recv.Held); n != 0 {
		t.Errorf("the new process holds %d connections, want none", n)
	}
	p.runNew()
	wait.For(t, done, "the drain to end")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("moved %d connections, want none", n)
	}
}

// The new process is told to stop when it has received connections, and the old one has
// not let go of them yet: they are served, and then the new one's drain is over.
func TestNewStopsWhileConnectionsArrive(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	_, done := p.drain()
	p.take()
	p.new.u.Socks.Own(true) // as it is once the new process is ready
	p.new.u.Socks.EndAccept()
	d := NewDrain(nil)
	ended := make(chan Report, 1)
	go func() {
		queues{p.new.u.Socks}.Drain(d)
		ended <- p.new.http.Drain(d)
	}()
	t.Cleanup(d.Hurry)
	// As long as it may come the listener is neither quiet nor parked.
	for range 100 {
		if p.new.l.Finished() || p.new.l.Gate.IsParked() {
			t.Fatal("the new process waits for no connection any more")
		}
	}
	p.runNew() // which reads the verdict
	wait.For(t, done, "the connection to move")
	wantAnswer(t, c, r, "", "new")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the answer: got %v, want %v", err, io.EOF)
	}
	wait.For(t, ended, "the new process's drain to end")
	// One that comes now stays with the old process.
	if p.new.l.Gate.Reserve() {
		t.Error("a listener that is closed takes connections")
	}
}

// The service is told to stop while a connection is on its way, and the new process,
// which stops as well, does not take it: the old one serves it, though it has let go of
// the listener.
func TestServiceStopsWhileConnectionsMove(t *testing.T) {
	p := newCouple(t, saysSide)
	p.runOld()
	c, r := p.ask()
	wait.For(t, p.old.seen, "the connection")
	_, done := p.drain()
	p.awaitMoves(1)
	p.new.u.Socks.Own(true)
	p.new.u.Socks.EndAccept()
	p.old.u.Socks.LetGo()
	p.runNew()
	wait.For(t, p.old.seen, "the connection to come back")
	wantAnswer(t, c, r, "", "old")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the answer: got %v, want %v", err, io.EOF)
	}
	wait.For(t, done, "the old process's drain to end")
	if n := p.mover.Count(); n != 0 {
		t.Errorf("moved %d connections, want none", n)
	}
}

// The old process dies when the new one has received a connection and the old one has
// not said yet that it let go of it: it is the new one's. What the new one could not
// receive has died with the old one.
func TestOldDiesWhileConnectionsMove(t *testing.T) {
	p := newCouple(t, saysSide)
	c, r := p.ask()
	p.drain()
	p.take()
	p.old.ch.Close() // as the kernel does
	p.runNew()
	wantAnswer(t, c, r, "", "new")
	wait.For(t, p.new.seen, "the connection")
}

// TestConnectionThatBeginsLate: one that is accepted while the process drains is
// asked to leave like those before it, but not by a mover that has failed to
// move it.
func TestConnectionThatBeginsLate(t *testing.T) {
	u, ln := newProcess(t)
	t.Cleanup(u.askStop)
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	l := ln.(*sockets.Listener)
	l.Live.Adopt(sockets.PhaseOther)
	m := &sockets.Mover{}
	_, before := connected(t, ln)
	l.Release(m, false)
	_, during := connected(t, ln)
	again := sockets.Tracked(sockets.TrackOf(during).Inner, l, nil, sockets.TrackOf(during), m)
	if sockets.TrackOf(again).Mover != nil {
		t.Error("a mover has again what it could not move")
	}
	l.Release(nil, true)
	_, ending := connected(t, ln)
	for name, c := range map[string]net.Conn{"before": before, "with a mover": during, "at the end": ending} {
		c.SetReadDeadline(time.Now().Add(wait.Limit))
		if _, err := c.Read(make([]byte, 1)); err != sockets.ErrMove {
			t.Errorf("%s: %v, want %v", name, err, sockets.ErrMove)
		}
	}
}

// TestReceivedOptions: what a connection was set to in the old process holds in the
// new one, though net.FileConn sets it as for a new connection.
func TestReceivedOptions(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := dialSolo(t, ln.Addr().String()).(*net.TCPConn)
	if err := errors.Join(c.SetNoDelay(false), c.SetKeepAlive(false)); err != nil {
		t.Fatal(err)
	}
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, custom := range []bool{true, false} {
		n, err := fd.Dup(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sockets.ReceiveConn(n, custom)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		n, err = fd.Of(got)
		if err != nil {
			t.Fatal(err)
		}
		if kept := sockets.KeepOptions(n); (kept[0] == 0) != custom || (kept[1] == 0) != custom {
			t.Errorf("custom %v: TCP_NODELAY is %d and SO_KEEPALIVE is %d", custom, kept[0], kept[1])
		}
	}
}
