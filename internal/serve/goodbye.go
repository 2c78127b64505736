package serve

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"
)

// A goodbye is the ResponseWriter of the last answer on an HTTP/1 connection. It
// sets "Connection: close" when the header goes out: not in an answer before that
// (103 Early Hints), and whatever the handler has set. If said is true from the
// start, it changes nothing but what Hijack returns.
type goodbye struct {
	http.ResponseWriter
	said  bool
	still func() bool // false: it is not the last answer after all
}

// say is called before anything that sends the header.
func (w *goodbye) say() {
	if !w.said {
		w.said = true
		if !w.still() {
			return
		}
		w.unset()
		w.Header().Set("Connection", "close")
	}
}

// unset removes Connection from the header, however the handler has spelled it, and
// returns what it was.
func (w *goodbye) unset() (was http.Header) {
	h := w.Header()
	for name, values := range h {
		if strings.EqualFold(name, "Connection") {
			if was == nil {
				was = http.Header{}
			}
			was[name] = values
			delete(h, name)
		}
	}
	return was
}

func (w *goodbye) WriteHeader(code int) {
	switch {
	case code >= 200:
		w.say()
	case code != http.StatusSwitchingProtocols && !w.said: // 101 is followed by what is not HTTP any more
		// The handler's own Connection is for the answer that is still to come.
		defer maps.Copy(w.Header(), w.unset())
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *goodbye) Write(p []byte) (int, error) {
	w.say()
	return w.ResponseWriter.Write(p)
}

// The other methods are those that net/http's own has, for handlers that look for
// them. A http.ResponseController finds the rest by Unwrap.

func (w *goodbye) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *goodbye) WriteString(s string) (int, error) {
	w.say()
	return io.WriteString(w.ResponseWriter, s)
}

func (w *goodbye) ReadFrom(r io.Reader) (int64, error) {
	w.say()
	if rf, ok := w.ResponseWriter.(io.ReaderFrom); ok { // sendfile, say
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{w.ResponseWriter}, r)
}

func (w *goodbye) Flush() { w.FlushError() }

func (w *goodbye) FlushError() error {
	w.say()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack returns the user's connection, not what the door has put before it. The
// latter holds no bytes any more: those that it had came before the request's
// header, and net/http reads into a buffer that has room for all of it.
func (w *goodbye) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if p, ok := c.(*peekedConn); ok {
		c = p.Conn
		rw.Writer.Reset(c) // net/http has done the same right now
	}
	return c, rw, err
}

func (w *goodbye) CloseNotify() <-chan bool {
	//lint:ignore SA1019 handlers may still use it
	if n, ok := w.ResponseWriter.(http.CloseNotifier); ok {
		return n.CloseNotify()
	}
	return make(chan bool)
}

// lingerFor is how long a connection is still read from after the last answer. A
// client that has sent more by then, as with pipelining, would else get a reset,
// which takes the answer with it if it has not been read yet (RFC 9112, 9.6). It
// is the time of a round trip or several: a client that reads the end closes.
const lingerFor = time.Second
