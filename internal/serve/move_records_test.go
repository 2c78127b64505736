//go:build linux

package serve

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// An oddity is what a client sends before an ordinary request and its close_notify.
type oddity struct {
	name string
	send func(s *sealer) []byte
	// begun: a part of it is the beginning of a request, with which nothing moves.
	begun bool
	// half: its first record is half a handshake message, with which nothing moves.
	half bool
	// anew: it has a record without data too many. If the old process has read some of them the
	// number begins anew, and it is as the oddity of this name.
	anew string
	// stricter is what our own record layer answers where crypto/tls of Go 1.25 takes more than
	// RFC 8446 allows.
	stricter string
}

var oddities = []oddity{
	{name: "a request", send: func(s *sealer) []byte { return s.get("/a") }},
	{name: "two requests in a record", send: func(s *sealer) []byte { return s.data(requestOf("/a") + requestOf("/b")) }},
	{name: "a request that ends in a record in which the next one begins", begun: true, send: func(s *sealer) []byte {
		all := requestOf("/a") + requestOf("/b") + requestOf("/c")
		n := len(requestOf("/a"))
		return slices.Concat(s.data(all[:n-7]), s.data(all[n-7:2*n-9]), s.data(all[2*n-9:]))
	}},
	{name: "a request in records of a byte, with empty ones between", begun: true, send: func(s *sealer) (all []byte) {
		for _, c := range requestOf("/a") {
			all = slices.Concat(all, s.data(string(c)), s.data(""))
		}
		return all
	}},
	{name: "an empty record", send: func(s *sealer) []byte { return s.data("") }},
	{name: "16 empty records", send: func(s *sealer) []byte { return times(16, func() []byte { return s.data("") }) }},
	{name: "16 empty records and a request", send: func(s *sealer) []byte {
		return append(times(16, func() []byte { return s.padded("", 300) }), s.get("/a")...)
	}},
	{name: "17 empty records", anew: "16 empty records", send: func(s *sealer) []byte {
		return times(17, func() []byte { return s.data("") })
	}},
	{name: "a request with padding", send: func(s *sealer) []byte { return s.padded(requestOf("/a"), 1000) }},

	{name: "a change of keys and a request", send: func(s *sealer) []byte { return append(s.update(0), s.get("/a")...) }},
	{name: "a change of both keys and a request", send: func(s *sealer) []byte { return append(s.update(1), s.get("/a")...) }},
	{name: "a request and a change of both keys", send: func(s *sealer) []byte { return append(s.get("/a"), s.update(1)...) }},
	{name: "16 changes of both keys", send: func(s *sealer) []byte { return times(16, func() []byte { return s.update(1) }) }},
	{name: "a change of keys in two records", half: true, send: func(s *sealer) []byte {
		all := append(s.message("\x18\x00\x00"), s.message("\x01\x01")...)
		s.rekey()
		return all
	}},
	{name: "two changes of keys in a record", stricter: "<[2 10]>", send: func(s *sealer) []byte {
		return s.message(strings.Repeat("\x18\x00\x00\x01\x00", 2))
	}},
	{name: "a change of keys that is none", send: func(s *sealer) []byte { return s.update(2) }},
	{name: "a change of keys, and data with the key before", send: func(s *sealer) []byte {
		return append(s.message("\x18\x00\x00\x01\x00"), s.get("/a")...)
	}},
	{name: "data within a change of keys", half: true, send: func(s *sealer) []byte {
		return append(s.message("\x18\x00\x00"), s.get("/a")...)
	}},
	{name: "a handshake message", send: func(s *sealer) []byte { return s.message("\x14\x00\x00\x20" + strings.Repeat("f", 32)) }},
	{name: "an unknown handshake message", send: func(s *sealer) []byte { return s.message("\x63\x00\x00\x01x") }},
	{name: "a handshake record without a message", send: func(s *sealer) []byte { return s.message("") }},

	{name: "close_notify", send: func(s *sealer) []byte { return s.alert(1, 0) }},
	{name: "a request and close_notify", send: func(s *sealer) []byte { return append(s.get("/a"), s.alert(1, 0)...) }},
	{name: "close_notify and a request", send: func(s *sealer) []byte { return append(s.alert(1, 0), s.get("/a")...) }},
	{name: "user_canceled", send: func(s *sealer) []byte { return s.alert(1, 90) }},
	{name: "user_canceled and a request", send: func(s *sealer) []byte { return append(s.alert(1, 90), s.get("/a")...) }},
	{name: "user_canceled and close_notify", send: func(s *sealer) []byte { return append(s.alert(1, 90), s.alert(1, 0)...) }},
	{name: "user_canceled and close_notify in a record", send: func(s *sealer) []byte {
		return s.record(tlstest.AlertRecord, "\x01\x5a\x01\x00")
	}},
	{name: "close_notify twice in a record", send: func(s *sealer) []byte { return s.record(tlstest.AlertRecord, "\x01\x00\x01\x00") }},
	{name: "17 of user_canceled", anew: "user_canceled", send: func(s *sealer) []byte { return times(17, func() []byte { return s.alert(1, 90) }) }},
	{name: "half an alert", send: func(s *sealer) []byte { return s.record(tlstest.AlertRecord, "\x01") }},
	{name: "an alert without content", send: func(s *sealer) []byte { return s.record(tlstest.AlertRecord, "") }},
	{name: "a warning", send: func(s *sealer) []byte { return s.alert(1, 100) }},
	{name: "an unknown alert", send: func(s *sealer) []byte { return s.alert(1, 200) }},
	{name: "a fatal alert", send: func(s *sealer) []byte { return s.alert(2, 42) }},
	{name: "a request and a fatal alert", send: func(s *sealer) []byte { return append(s.get("/a"), s.alert(2, 42)...) }},
	{name: "a fatal alert and a request", send: func(s *sealer) []byte { return append(s.alert(2, 42), s.get("/a")...) }},

	{name: "change_cipher_spec and a request", send: func(s *sealer) []byte {
		return append([]byte{20, 3, 3, 0, 1, 1}, s.get("/a")...)
	}},
	{name: "17 of change_cipher_spec", anew: "an empty record", send: func(*sealer) []byte { return bytes.Repeat([]byte{20, 3, 3, 0, 1, 1}, 17) }},
	{name: "another change_cipher_spec", send: func(*sealer) []byte { return []byte{20, 3, 3, 0, 1, 2} }},
	{name: "a record of an unknown type", send: func(s *sealer) []byte { return s.record(99, "x") }},
	{name: "a record without a type", send: func(s *sealer) []byte { return s.record(0, strings.Repeat("\x00", 50)) }},
	{name: "a record that was changed", send: func(s *sealer) []byte {
		r := s.get("/a")
		r[len(r)-1]++
		return r
	}},
	{name: "a record that comes twice", send: func(s *sealer) []byte {
		r := s.data("")
		return append(r, r...)
	}},
	{name: "an alert that is not sealed", send: func(*sealer) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }},
	{name: "a record that is too large", send: func(*sealer) []byte { return []byte{23, 3, 3, 0x41, 1} }},
	{name: "no TLS", send: func(*sealer) []byte { return []byte(requestOf("/a")) }},
}

// A heard is what is compared: what the client has received, and which requests the server's
// handler was called for.
type heard struct {
	got      string
	updates  int
	requests []string
}

func (h heard) String() string {
	return fmt.Sprintf("%q, %d changes of keys, requests %q", h.got, h.updates, h.requests)
}

// A book has the requests that were handled, in order, and by which side.
type book struct {
	mu       sync.Mutex // guards what follows
	requests []string
	last     string
}

// over answers with the path and how often it was asked for.
func (b *book) over(side string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.requests, b.last = append(b.requests, r.URL.Path), side
		b.mu.Unlock()
		w.Header()["Date"] = nil
		fmt.Fprintf(w, "[%s]", r.URL.Path)
	})
}

func (b *book) heard(s *sealer) heard {
	h := heard{}
	h.got, h.updates = s.receive("")
	b.mu.Lock()
	defer b.mu.Unlock()
	h.requests = slices.Clone(b.requests)
	return h
}

// rest is what the client sends in the end.
func (s *sealer) rest() []byte { return append(s.get("/last"), s.alert(1, 0)...) }

// first lets the server answer a request.
func (s *sealer) first() {
	s.t.Helper()
	s.send(s.get("/first"))
	s.receive("[/first]")
}

// plain sends the oddity to a server of net/http and crypto/tls alone.
func (w *tlsWorld) plain(t *testing.T, odd oddity, asked bool) heard {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := new(book)
	srv := &http.Server{Handler: b.over("plain"), TLSConfig: w.old.Clone(), ErrorLog: log.New(io.Discard, "", 0)}
	srv.TLSConfig.NextProtos = []string{"http/1.1"}
	done := make(chan struct{})
	go func() { defer close(done); srv.ServeTLS(ln, "", "") }()
	defer func() { srv.Close(); wait.For(t, done, "the plain server to end") }()
	c, err := net.DialTimeout("tcp", ln.Addr().String(), wait.Limit)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait.Limit))
	s := newSealer(t, c, w.client)
	if asked {
		s.first()
	}
	s.send(odd.send(s))
	s.send(s.rest())
	return b.heard(s)
}

// A placement is when an oddity comes: so much of its n bytes before the old process drains,
// and the rest afterwards.
type placement struct {
	name   string
	before func(n int) int
	while  bool // the rest comes while the connection is on its way, and else when it has moved
}

var placements = []placement{
	{"before", func(n int) int { return n }, false},
	{"half a header before", func(int) int { return 3 }, false},
	{"half before", func(n int) int { return n / 2 }, false},
	{"half before, half while it moves", func(n int) int { return n / 2 }, true},
	{"all but a byte before", func(n int) int { return n - 1 }, false},
	{"while it moves", func(int) int { return 0 }, true},
	{"after", func(int) int { return 0 }, false},
}

// A past is what the connection has behind it.
type past struct {
	name         string
	asked, moved bool
}

var pasts = []past{{"a new connection", false, false}, {"one that has asked", true, false}, {"one that has moved", true, true}}

// TestMovedRecords: whatever records a client may make, and whenever they come, before a
// connection moves, while it does and afterwards, in two parts as well: it is answered as by
// net/http and crypto/tls alone, with the same alerts, each request is handled once, and no
// number is used twice.
func TestMovedRecords(t *testing.T) {
	w := newTLSWorld(t)
	for _, odd := range oddities {
		t.Run(odd.name, func(t *testing.T) {
			plain := map[bool]heard{}
			for _, asked := range []bool{false, true} {
				plain[asked] = w.plain(t, odd, asked)
			}
			for _, past := range pasts {
				for _, place := range placements {
					t.Run(past.name+", "+place.name, func(t *testing.T) {
						w.moved(t, odd, past, place, plain[past.asked])
					})
				}
			}
		})
	}
}

// moved sends the oddity to servers between which the connection moves, and compares.
func (w *tlsWorld) moved(t *testing.T, odd oddity, past past, place placement, want heard) {
	b := new(book)
	p, last := newCouple(t, w.over(b.over)), "new"
	s := newSealer(t, p.dial(), w.client)
	if past.asked {
		s.first()
	}
	wait.For(t, p.old.seen, "the connection")
	if past.moved {
		p.runOld()
		p.runNew()
		_, done := p.drain()
		wait.For(t, done, "the connection to move before")
		last = "newest"
		p = p.next(w.over(func(string) http.Handler { return b.over(last) })("new"))
		wait.For(t, p.old.seen, "the connection that has moved")
	}

	all := odd.send(s)
	n := place.before(len(all))
	stays := odd.half && recordsIn(all[:n]) == 1
	begun := odd.begun && 0 < n && n < len(all)
	while := place.while && !stays && !begun
	s.send(all[:n])
	p.await("the old process to read", s.isRead(p.old))
	if !while {
		p.runOld()
		p.runNew()
	}
	d, done := p.drain()
	switch {
	case stays:
		p.await("the connection to come back", func() bool { return len(p.old.seen)+len(done) > 0 })
		// What has come with the end of the handshake may not be looked at yet, and moves then.
		stays = past.asked || len(done) == 0
	case begun:
		p.await("the drain", func() bool { return p.old.http.draining.Load() == d && !p.old.http.begun().IsZero() })
	case while:
		p.await("the connection to be on its way, or over", func() bool {
			moving, _ := p.mover.Pending()
			return moving == 1 || len(done) > 0
		})
	default:
		wait.For(t, done, "the connection to move, or to end")
	}
	s.send(all[n:])
	if while {
		p.runOld()
		p.runNew()
		wait.For(t, done, "the connection to move, or to end")
	}
	s.send(s.rest())

	got, moved := b.heard(s), p.mover.Count() == 1
	want = want.untilFatal()
	if !moved && !past.moved { // crypto/tls does go on
		got = got.untilFatal()
	}
	if odd.stricter != "" && strings.HasPrefix(runtime.Version(), "go1.25") {
		want.got = odd.stricter
		if !past.moved && n == len(all) && strings.HasPrefix(got.got, "<[2 ") {
			want.got = got.got // crypto/tls has taken it, and what follows is refused
		}
	}
	if stays {
		got.got = strings.Replace(got.got, "Connection: close\r\n", "", 1)
	}
	if odd.anew != "" && moved && 0 < n && got.String() != want.String() {
		want = w.plain(t, oddityOf(t, odd.anew), past.asked)
	}
	if got.String() != want.String() {
		t.Errorf("servers that move: %v\nnet/http alone:    %v", got, want)
	}
	if answered := slices.Contains(got.requests, "/last"); answered && !begun && (stays == moved || stays == (b.last == last)) {
		t.Errorf("it has moved: %v, and %s answers at last; is it to stay: %v", moved, b.last, stays)
	}
}

// recordsIn counts the whole records.
func recordsIn(b []byte) (n int) {
	for ; len(b) >= 5 && len(b) >= 5+int(binary.BigEndian.Uint16(b[3:])); n++ {
		b = b[5+binary.BigEndian.Uint16(b[3:]):]
	}
	return n
}

func oddityOf(t *testing.T, name string) oddity {
	t.Helper()
	i := slices.IndexFunc(oddities, func(o oddity) bool { return o.name == name })
	if i < 0 {
		t.Fatalf("there is no oddity %q", name)
	}
	return oddities[i]
}

// untilFatal leaves out what the server does behind a fatal alert. Our own record layer does
// nothing, see docs/tls.md; crypto/tls sends close_notify, or the alert once more, and of what it
// returns a net/http that reads again may still call the handler.
func (h heard) untilFatal() heard {
	if at := strings.Index(h.got, "<[2 "); at >= 0 {
		h.got = h.got[:at+strings.Index(h.got[at:], ">")+1]
		h.requests = slices.DeleteFunc(slices.Clone(h.requests), func(path string) bool { return path == "/last" })
	}
	return h
}

// isRead reports whether a process has read all that was sent, or has closed.
func (s *sealer) isRead(by *side) func() bool {
	control := func(c net.Conn, f func(fd int) error) {
		s.t.Helper()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			s.t.Fatal(err)
		}
		var failed error
		if raw.Control(func(fd uintptr) { failed = f(int(fd)) }) == nil && failed != nil {
			s.t.Fatal(failed)
		}
	}
	return func() bool {
		sent, read := uint64(0), uint64(0)
		control(s.tcp, func(fd int) error {
			i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				sent = i.Bytes_sent - i.Bytes_retrans + uint64(i.Notsent_bytes)
			}
			return err
		})
		for _, track := range by.l.Live.All() {
			control(track.Inner, func(fd int) error {
				i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				if err != nil {
					return err
				}
				waits, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
				read = i.Bytes_received - uint64(waits)
				return err
			})
			return read == sent
		}
		return true
	}
}
