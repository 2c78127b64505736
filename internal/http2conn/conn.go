// Package http2conn sees to it that a server of HTTP/2 can take leave of a client
// without losing a request.
//
// RFC 9113, section 6.8: a server that shuts down sends GOAWAY with the last stream id
// 2^31-1, by which a client learns that it is to begin no more streams here; it serves
// what is still on its way; and at least a round trip later it sends GOAWAY with the id
// of the last stream that it has served. The server of net/http sends the second one
// only, and ignores without an answer each stream that was begun before the client has
// read it: golang/go 15386, 77229. Such a request is lost, unless the client sends it
// again, which it can't if the body is gone.
//
// A [Conn] stands between that server and the connection, where nothing is encrypted,
// and sends the first GOAWAY, with a PING whose answer shows that the client has read
// it. The second is sent by [net/http.Server.Shutdown], which the caller calls then.
package http2conn

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Conn is a connection of HTTP/2 as net/http is to read and to write it.
//
// It follows the frames of either direction by their headers, and copies nothing. It
// has none of the optional methods of connections, ReadFrom or SyscallConn, say: the
// server of HTTP/2 uses none, and what they pass on would not be seen. A net.Buffers
// written to a Conn comes as one Write for each buffer.
type Conn struct {
	net.Conn
	hidden *tls.ConnectionState // see Serve

	// These three belong to the goroutine that reads: net/http has one at a time.
	in       frames // what was read
	answered bool   // the answer to our PING has been read to its end
	limited  bool   // there is a read deadline for the preface, and it has not come

	writing sync.Mutex // held while something is written; guards what follows
	out     written
	told    bool   // our GOAWAY has been sent, or a part of it
	owed    []byte // the rest of it

	begun  atomic.Bool // see Begun
	asked  atomic.Bool // GoAway was called
	leave  atomic.Pointer[leave]
	closed atomic.Bool
}

// A leave is the time from the first GOAWAY to the second.
type leave struct {
	until time.Time
	timer *time.Timer // calls end
	once  sync.Once
	over  atomic.Bool
	done  func()
}

// pingData is what our PING carries, and so what its answer does. Those of net/http
// are random.
var pingData = [smallLen]byte{'g', 'o', 'a', 'w', 'a', 'y', ' ', '1'}

// farewell is GOAWAY with the last stream id 2^31-1 and NO_ERROR, and a PING.
var farewell = append([]byte{
	0, 0, 8, typeGoAway, 0, 0, 0, 0, 0,
	0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
	0, 0, smallLen, typePing, 0, 0, 0, 0, 0,
}, pingData[:]...)

// straggling is how long streams may still come after the answer to the PING. A client
// that writes from several goroutines or threads may have given a stream its id before
// it has read GOAWAY, and write HEADERS after the PING's answer: Go's does, in
// writeRequest, between addStreamLocked and encodeAndWriteHeaders. A test has its own.
var straggling = 50 * time.Millisecond

// New returns c as net/http is to serve it. Nothing of HTTP/2 has been read from c or
// written to it: what c reads begins with the client's preface. If c does TLS, see
// [Serve] for what net/http is given.
func New(c net.Conn) *Conn {
	return &Conn{Conn: c, in: newClientFrames()}
}

// NetConn returns what [New] was given.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Begun reports whether the client has begun a stream.
func (c *Conn) Begun() bool { return c.begun.Load() }

// GoAway tells the client to begin no more streams, and calls done when those have come
// that were on their way: when the client has shown that it knows, when the connection
// is closed, or when so much time is over, also if the client reads nothing. done is
// called once, by a goroutine that is not the caller's, and is to shut the server down.
// GoAway itself does not wait. It may be called once; a second call does nothing, not
// even call done.
//
// What is sent waits for a place between two frames, and until the client's SETTINGS
// have been acknowledged: a client learns nothing before it has said hello. Nothing is
// sent after a GOAWAY of the server's own, whose last id must not grow (RFC 9113,
// section 6.8), nor when the time is over.
//
// It can't be taken back, as the client is about to open another connection, and uses
// this one no more. If the caller changes its mind, it lets this one end all the same:
// done is called, Shutdown lets the streams finish that there are, and closes the
// connection then.
func (c *Conn) GoAway(after time.Duration, done func()) {
	if c.asked.Swap(true) {
		return
	}
	l := &leave{until: time.Now().Add(after), done: done}
	l.timer = time.AfterFunc(after, l.end)
	c.leave.Store(l)
	if c.closed.Load() { // Close may have come before leave was set
		l.timer.Reset(0)
		return
	}
	// The goroutine ends with the connection at the latest: Close ends each Write.
	go func() {
		c.writing.Lock()
		defer c.writing.Unlock()
		if c.due() {
			c.tell()
		}
	}()
}

// endIn lets it be over after d, if it is not before.
func (l *leave) endIn(d time.Duration) { l.timer.Reset(min(d, time.Until(l.until))) }

func (l *leave) end() {
	l.once.Do(func() {
		l.over.Store(true)
		l.done()
	})
}

// Read is called by net/http's reader of frames.
//
// When the answer to our PING has been read, done is not called at once, but at the
// next Read. The server then knows all streams that came before the answer, and so
// counts them in the last id of the GOAWAY that Shutdown lets it send:
//
//   - One goroutine reads (readFrames), a frame at a time, gives it to the goroutine
//     that serves, and reads no more until that one has processed it (the channels
//     readFrameCh and gate). A Read that asks for what follows the answer comes after
//     the answer was processed, and thus each frame before it.
//   - HEADERS are processed in one piece: processHeaders registers the stream, and sets
//     maxClientStreamID, which is the last id of GOAWAY. A frame of HEADERS is read
//     together with its CONTINUATIONs.
//   - Shutdown comes to the goroutine that serves as a message (gracefulShutdownMsg,
//     through serveMsgCh). It is sent after done was called, so after that Read, and is
//     processed later than what was processed before.
//
// Should net/http read ahead one day, into a buffer, then a Read means that the buffer
// has no whole frame any more, and the argument holds as well, as long as frames are
// processed one by one. So it is in the server of Go 1.25 to 1.27 and in that of
// golang.org/x/net. Each ignores the answer to a PING that it has not sent
// (processPing), so that nothing has to be taken out of what it reads.
func (c *Conn) Read(p []byte) (int, error) {
	if c.answered {
		c.answered = false
		c.leave.Load().endIn(straggling)
	}
	n, err := c.Conn.Read(p)
	if c.limited && !c.isPreface(p[:n]) {
		return 0, io.EOF // else the server may answer in HTTP/1
	}
	for p = p[:n]; len(p) > 0; {
		k, whole := c.in.next(p)
		p = p[k:]
		if whole && c.limited {
			c.limited = false
			c.Conn.SetReadDeadline(time.Time{}) // Go 1.25 does not
		}
		if whole && c.in.typ() == typeHeaders && !c.begun.Load() {
			c.begun.Store(true)
		}
		if whole && c.in.typ() == typePing && c.in.flags()&flagAck != 0 && c.in.small == pingData && c.leave.Load() != nil {
			c.answered = true
		}
	}
	return n, err
}

// isPreface reports whether p, which was read next, goes on as the preface does.
func (c *Conn) isPreface(p []byte) bool {
	rest := preface[prefaceLen-c.in.left:]
	n := min(len(p), len(rest))
	return string(p[:n]) == rest[:n]
}

// Write is called by net/http with what its buffer holds, which may be many frames or
// a part of one.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if l := c.leave.Load(); l == nil || c.told && len(c.owed) == 0 {
		n, err = c.Conn.Write(p)
		c.out.all(p[:n])
		return n, err
	}
	for {
		if len(c.owed) > 0 || c.due() {
			if err := c.tell(); err != nil && len(p) > 0 {
				return n, err
			}
		}
		if len(p) == 0 {
			return n, nil
		}
		k, err := c.Conn.Write(p[:c.place(p)])
		c.out.all(p[:k])
		n += k
		p = p[k:]
		if err != nil {
			return n, err
		}
	}
}

// place returns how much of p is to be written before our GOAWAY: all of it, if p has
// no place for that, or none is needed.
func (c *Conn) place(p []byte) int {
	if c.told || c.leave.Load().over.Load() {
		return len(p)
	}
	ahead := c.out
	for n := 0; n < len(p); {
		n += ahead.next(p[n:])
		if ahead.open() {
			return n
		}
	}
	return len(p)
}

// due reports whether our GOAWAY is to be written now.
func (c *Conn) due() bool {
	return !c.told && c.out.open() && !c.leave.Load().over.Load()
}

// tell writes it. If that fails in its midst, the rest comes before all else.
func (c *Conn) tell() error {
	if !c.told {
		c.told, c.owed = true, farewell
	}
	n, err := c.Conn.Write(c.owed)
	c.owed = c.owed[n:]
	return err
}

// Close closes the connection: nothing is to be waited for any more.
func (c *Conn) Close() error {
	c.closed.Store(true)
	if l := c.leave.Load(); l != nil {
		l.timer.Reset(0)
	}
	return c.Conn.Close()
}
