//go:build linux

package serve

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A plan is what one client does, read from the fuzzer's bytes: requests of any kind,
// cut into slices at any place, and the moment at which the old process drains.
type plan struct {
	stream   []byte
	ends     []int // where each request ends in stream
	bodies   [][]byte
	cuts     []cut
	drainAt  int // before this slice
	patience bool
}

// A cut ends a slice; wait says that the client first reads the answers to all
// that it has sent in full.
type cut struct {
	at   int
	wait bool
}

func newPlan(data []byte) plan {
	next := bytesOf(data)
	var p plan
	var out bytes.Buffer
	for i := range 1 + next()%6 {
		var body []byte
		switch kind := next(); kind % 5 {
		case 0:
			fmt.Fprintf(&out, "GET /%d HTTP/1.1\r\nHost: grace\r\n\r\n", i)
		case 1: // smaller than the server's buffer, or as large, or larger
			body = filled(i, next()*[]int{1, 16, 17, 64}[next()%4])
			fmt.Fprintf(&out, "POST /%d HTTP/1.1\r\nHost: grace\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
		case 2:
			fmt.Fprintf(&out, "PUT /%d HTTP/1.1\r\nHost: grace\r\nTransfer-Encoding: chunked\r\n\r\n", i)
			for range 1 + next()%3 {
				chunk := filled(i, 1+next()*16)
				fmt.Fprintf(&out, "%x\r\n%s\r\n", len(chunk), chunk)
				body = append(body, chunk...)
			}
			out.WriteString("0\r\n\r\n")
		case 3: // a header that just fills the buffer, or nearly
			fmt.Fprintf(&out, "GET /%d HTTP/1.1\r\nHost: grace\r\nX-Fill: %s\r\n\r\n", i, filled(i, 3900+next()))
		case 4: // its body is a request, should a server take it for one
			body = []byte("GET /smuggled HTTP/1.1\r\nHost: grace\r\n\r\n")
			fmt.Fprintf(&out, "POST /%d HTTP/1.1\r\nHost: grace\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
		}
		p.ends = append(p.ends, out.Len())
		p.bodies = append(p.bodies, body)
	}
	p.stream = out.Bytes()
	p.patience = next()%2 == 0
	drain := next()
	for at := 0; at < len(p.stream); {
		n := next()
		switch n % 4 {
		case 0: // to the end of a request, and sometimes a few bytes more
			to := len(p.stream)
			for _, end := range p.ends {
				if end > at {
					to = end
					break
				}
			}
			at = min(to+n/64, len(p.stream))
		case 1:
			at += 1 + n/4
		case 2:
			at += 1 + n*16
		case 3:
			at = len(p.stream)
		}
		at = min(at, len(p.stream))
		p.cuts = append(p.cuts, cut{at, n%3 != 0})
	}
	p.drainAt = drain % (len(p.cuts) + 1)
	return p
}

func filled(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte((i*7+seed)%26)
	}
	return b
}

// sums answers with the path and the body's length and sum.
func sums(side string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
		w.Header().Set("Side", side)
		if len(b)%2 == 1 {
			w.(http.Flusher).Flush() // a chunked answer
		}
		io.WriteString(w, sum(r.URL.Path, b))
	})
}

func sum(path string, body []byte) string {
	return fmt.Sprintf("%s %d %08x", path, len(body), crc32.ChecksumIEEE(body))
}

// FuzzMove: whatever a client sends, and whenever the old process drains, every request
// is answered once, in order, and with all of its bytes, on one connection that is the
// new process's at the end.
func FuzzMove(f *testing.F) {
	for _, seed := range []string{
		"", "\x00\x00", // one request
		"\x03\x00\x00\x00\x00\x00\x02\x01\x01\x01\x01\x01\x01", // four, in slices of a byte
		"\x03\x01\xff\x03\x01\xff\x00\x02\x02\xff\x80\x03\x10\x00\x01\x00\x40\x80\xc0\x00",
		"\x02\x03\xb0\x03\xb5\x03\xba\x00\x01\x40\x41\x42\x43\x44\x45\x46",
		"\x05\x04\x04\x04\x04\x04\x04\x00\x01\x03\x03",                     // all at once
		"\x05\x00\x01\xff\x02\x00\x04\x00\x00\x00\x00\x03\x40\x40\x40\x40", // the next one has begun
		"\x04\x02\x02\xff\xff\xff\x01\x80\x02\x00\x04\x01\x02\x09\x05\x0d\x11\x15\x19\x1d\x21\x25\x29",
	} {
		for drain := range byte(4) {
			f.Add(append([]byte(seed), drain, drain*37, drain*101))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		newPlan(data).run(t, newCouple(t, sums), (*couple).dial)
	})
}

// TestMoveAtRandom: the same with other bytes each time. The name of a failed
// one has them, for f.Add.
func TestMoveAtRandom(t *testing.T) {
	for range 200 {
		data := make([]byte, 1+rand.IntN(60))
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		t.Run(hex.EncodeToString(data), func(t *testing.T) { newPlan(data).run(t, newCouple(t, sums), (*couple).dial) })
	}
}

// run does what the plan says with the client that dial gives. One that has flush may hold
// back a part of what it is given until then.
func (p plan) run(t *testing.T, c *couple, dial func(*couple) net.Conn) {
	c.runOld()
	c.runNew()
	conn := dial(c)
	flush := func() {
		if f, ok := conn.(interface{ flush() error }); ok {
			f.flush()
		}
	}
	wait.For(t, c.old.seen, "the old process to accept")
	answers := make(chan string, len(p.ends)+1)
	go func() {
		defer close(answers)
		r := bufio.NewReader(conn)
		for {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				if err != io.ErrUnexpectedEOF || r.Buffered() > 0 {
					answers <- fmt.Sprintf("error %v", err)
				}
				return
			}
			b, err := io.ReadAll(resp.Body)
			answers <- fmt.Sprintf("%s %s%s %v", resp.Header.Get("Side"), resp.Header.Get("Connection"), b, err)
		}
	}()
	got := 0
	want := func(upTo int) {
		t.Helper()
		for ; got < len(p.ends) && p.ends[got] <= upTo; got++ {
			what := sum(fmt.Sprintf("/%d", got), p.bodies[got]) + " <nil>"
			if a := wait.For(t, answers, "an answer"); a != "old "+what && a != "new "+what {
				t.Fatalf("request %d: got %q, want old or new, and %q", got, a, what)
			}
		}
	}
	var drained <-chan Report
	sent := 0
	for i, cut := range append(p.cuts, cut{len(p.stream), true}) {
		if i == p.drainAt {
			_, drained = c.drain()
			if got == len(p.ends) && p.patience {
				wait.For(t, drained, "an idle connection to move")
				drained = nil
			}
		}
		if _, err := conn.Write(p.stream[sent:cut.at]); err != nil {
			t.Fatalf("send: %v", err)
		}
		if sent = cut.at; cut.wait {
			flush()
			want(sent)
		}
	}
	flush()
	if drained != nil {
		wait.For(t, drained, "the connection to move")
	}
	fmt.Fprint(conn, "GET /last HTTP/1.1\r\nHost: grace\r\n\r\n")
	flush()
	if a, w := wait.For(t, answers, "the last answer"), "new "+sum("/last", nil)+" <nil>"; a != w {
		t.Fatalf("the last request: got %q, want %q", a, w)
	}
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if a, ok := <-answers; ok {
		t.Fatalf("after the last answer: got %q, want nothing", a)
	}
}
