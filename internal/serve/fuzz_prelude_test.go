package serve

import (
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

// pieces are what a client sends, in any order: legal requests, and such as a
// server refuses, or only just bears.
var pieces = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
	"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
	"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"PUT /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
	"GET /o HTTP/1.0\r\n\r\n",
	"GET /k HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
	"POST /w HTTP/1.1\r\nHost: a\r\nWait: 700ms\r\nContent-Length: 0\r\n\r\n",
	"\r\n", "\n", "\r", " ", "a", "\x00", "G", "POS",
	"GET / HT", "TP/1.1\r\n", "Host: a\r\n", "Host: b\r\nHost: c\r\n", "X: y\r\n z\r\n", ": no name\r\n", "Bad Name: x\r\n",
	"Content-Length: 5\r\n", "Content-Length: -1\r\n", "Transfer-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n",
	"5\r\nhello\r\n", "zz\r\n", "0\r\n\r\n",
	"GET /y HTTP/3.7\r\nHost: a\r\n\r\n", "get / http/1.1\r\n\r\n", "GET  /two HTTP/1.1\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "Expect: the unexpected\r\n", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n",
	"X-Long: " + strings.Repeat("l", 3000) + "\r\n", "X-Longer: " + strings.Repeat("l", 6000) + "\r\n",
	"GET /" + strings.Repeat("long/", 1500) + " HTTP/1.1\r\nHost: a\r\n\r\n",
}

// bytesOf returns what gives the bytes of data, and zeros after them.
func bytesOf(data []byte) func() int {
	return func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
}

// newStory reads one from bytes.
func newStory(data []byte) story {
	next := bytesOf(data)
	timeouts, limits := next(), next()
	h2c := false
	l := story{moves: 1, srv: func(srv *http.Server) {
		for i, d := range []*time.Duration{&srv.ReadTimeout, &srv.ReadHeaderTimeout, &srv.WriteTimeout, &srv.IdleTimeout} {
			if timeouts>>i&1 == 1 {
				*d = []time.Duration{3001, 2203, 4107, 3719}[i] * time.Millisecond
			}
		}
		if limits&1 == 1 {
			srv.MaxHeaderBytes = 2000
		}
		if h2c {
			srv.Protocols = new(http.Protocols)
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetUnencryptedHTTP2(true)
		}
	}}
	// What comes before must leave it where it can move.
	for range next() % 4 {
		l.before = append(l.before, step{time.Duration(next()) * 10 * time.Millisecond, pieces[next()%5]})
	}
	// New connections are looked at by a door then, which is not here.
	h2c = limits&2 == 2 && len(l.before) > 0
	for range 1 + next()%8 {
		p := pieces[next()%len(pieces)]
		pause := time.Duration(next()%16) * 71 * time.Millisecond
		if cut := next(); cut%3 == 0 { // sent in two
			at := cut % len(p)
			l.after = append(l.after, step{pause, p[:at]})
			pause, p = time.Duration(next()%8)*53*time.Millisecond, p[at:]
		}
		l.after = append(l.after, step{pause, p})
	}
	return l
}

// compare lives it with a move and without.
func (l story) compare(t *testing.T) {
	t.Helper()
	moved := l.live(t)
	l.moves = 0
	if unmoved := l.live(t); moved != unmoved {
		t.Errorf("before the move %v, after it %v: got\n%swant, as without a move,\n%s", l.before, l.after, moved, unmoved)
	}
}

// FuzzMovedAsUnmoved: whatever a client sends after a move, and when, it is
// answered as on a connection that was not moved.
func FuzzMovedAsUnmoved(f *testing.F) {
	for i := range pieces {
		for _, before := range []string{"\x00", "\x01\x00\x00", "\x01\x00\x01"} {
			f.Add([]byte("\x00\x00" + before + "\x03" + string(rune(i)) + "\x01\x01\x00\x01\x01\x0a\x01\x01"))
			f.Add([]byte("\x0f\x03" + before + "\x03\x0a\x01\x01" + string(rune(i)) + "\x01\x01\x00\x01\x01"))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { newStory(data).compare(t) })
}

// TestMovedAsUnmovedAtRandom: the same with other bytes each time. The name of a
// failed one has them, for f.Add.
func TestMovedAsUnmovedAtRandom(t *testing.T) {
	for range 300 {
		data := make([]byte, 1+rand.IntN(50))
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		t.Run(hex.EncodeToString(data), func(t *testing.T) { newStory(data).compare(t) })
	}
}
