package http2conn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/testing/http2test"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

const maxID = 1<<31 - 1

// ways are those on which a client comes.
func ways(t *testing.T, run func(t *testing.T, overTLS bool)) {
	for name, overTLS := range map[string]bool{"h2c": false, "TLS": true} {
		t.Run(name, func(t *testing.T) { run(t, overTLS) })
	}
}

// through returns the address of a relay before the site.
func through(t testing.TB, s *site) string {
	r, err := load.NewRelay("tcp", s.addr, 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r.Addr()
}

// TestTwoGoAways: the first says 2^31-1, whereupon streams that come are served, also
// one right after the answer to the PING; the second says the last of them. Bodies may
// be under way all the time.
func TestTwoGoAways(t *testing.T) {
	ways(t, func(t *testing.T, overTLS bool) {
		for _, far := range []bool{false, true} {
			t.Run(fmt.Sprintf("far=%v", far), func(t *testing.T) {
				s := newSite(t, overTLS, echo)
				addr := s.addr
				if far {
					addr = through(t, s)
				}
				c := newClient(t, s, addr)
				c.hello()
				first := c.post("first")
				c.answered(first, "first")
				slow := c.begin("/")
				drained := make(chan struct{})
				go func() {
					defer close(drained)
					s.drain(time.Hour)
				}()
				if id := away(t, c.until(typeGoAway)); id != maxID {
					t.Fatalf("the first GOAWAY says %d, want 2^31-1", id)
				}
				if got := c.until(typePing); !bytes.Equal(got, pingData[:]) {
					t.Fatalf("PING carries %q", got)
				}
				// These were on their way.
				between := c.post("between")
				half := c.begin("/")
				c.answered(between, "between")
				c.send(frame(typePing, flagAck, 0, pingData[:]...))
				late := c.post("late")
				if id := away(t, c.until(typeGoAway)); id != late {
					t.Errorf("the second GOAWAY says %d, want %d", id, late)
				}
				c.answered(late, "late")
				c.finish(half, "half")
				c.answered(half, "half")
				c.finish(slow, strings.Repeat("slow", 4000))
				c.answered(slow, strings.Repeat("slow", 4000))
				c.ends(maxID, late)
				wait.For(t, drained, "the end of the drain")
			})
		}
	})
}

// TestStraggling: a stream that comes a moment after the answer to the PING is served. A PING
// of the client's is answered in between: the server has read on by then.
func TestStraggling(t *testing.T) {
	before := straggling
	straggling = 2 * time.Second // on a busy machine, 50 ms may be over before the stream is sent
	t.Cleanup(func() { straggling = before })
	s := newSite(t, false, echo)
	c := newClient(t, s, s.addr)
	c.hello()
	c.answered(c.post("first"), "first")
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.drain(time.Hour)
	}()
	c.until(typeGoAway)
	c.until(typePing)
	c.send(frame(typePing, flagAck, 0, pingData[:]...))
	c.send(frame(typePing, 0, 0, []byte("the next")...))
	for string(c.until(typePing)) != "the next" {
	}
	late := c.post("late")
	c.answered(late, "late")
	if id := away(t, c.until(typeGoAway)); id != late {
		t.Errorf("the second GOAWAY says %d, want %d", id, late)
	}
	c.ends(maxID, late)
	wait.For(t, drained, "the end of the drain")
}

// TestNoAnswer: a client that does not answer the PING has its time, and its streams
// are answered.
func TestNoAnswer(t *testing.T) {
	s := newSite(t, false, echo)
	c := newClient(t, s, s.addr)
	c.hello()
	id := c.begin("/")
	c.until(typeSettings)
	go s.drain(300 * time.Millisecond)
	if id := away(t, c.until(typeGoAway)); id != maxID {
		t.Fatalf("the first GOAWAY says %d, want 2^31-1", id)
	}
	c.finish(c.begin("/"), "between")
	if last := away(t, c.until(typeGoAway)); last != 3 {
		t.Errorf("the second GOAWAY says %d, want 3", last)
	}
	c.answered(3, "between")
	c.finish(id, "slow")
	c.answered(id, "slow")
	c.ends(maxID, 3)
}

// TestRequestTLS: net/http finds ConnectionState, or the caller is told to set it.
func TestRequestTLS(t *testing.T) {
	ways(t, func(t *testing.T, overTLS bool) {
		s := newSite(t, overTLS, echo)
		tr := newTransport(s)
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: wait.Limit}).Get(s.scheme() + "://" + s.addr)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("X-Tls"); got != fmt.Sprint(overTLS) || resp.ProtoMajor != 2 {
			t.Errorf("Request.TLS is set: %s; by %s", got, resp.Proto)
		}
	})
}

// newTransport is Go's client, which speaks HTTP/2 only.
func newTransport(s *site) *http.Transport {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	if s.trust == nil {
		tr.Protocols.SetUnencryptedHTTP2(true)
	} else {
		tr.Protocols.SetHTTP2(true)
		tr.TLSClientConfig = s.trust.Clone()
	}
	return tr
}

// rounds is how often drainUnderLoad drains.
const rounds = 5

// drainUnderLoad lets several goroutines ask again and again while server after server
// is drained.
func drainUnderLoad(t *testing.T, s *site, ask func(worker int) error) {
	var asked, drains atomic.Int64
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			for drains.Load() < rounds {
				if err := ask(i); err != nil {
					t.Error(err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for range rounds {
		before := asked.Load()
		wait.Until(t, "some answers", func() bool { return t.Failed() || asked.Load() >= before+10 })
		s.drain(wait.Limit)
		drains.Add(1)
	}
	workers.Wait()
	t.Logf("%d requests in %d drains", asked.Load(), rounds)
}

// nearAndFar runs a test directly, and through a relay.
func nearAndFar(t *testing.T, run func(t *testing.T, s *site, addr string)) {
	ways(t, func(t *testing.T, overTLS bool) {
		t.Run("near", func(t *testing.T) {
			s := newSite(t, overTLS, echo)
			run(t, s, s.addr)
		})
		t.Run("far", func(t *testing.T) {
			s := newSite(t, overTLS, echo)
			run(t, s, through(t, s))
		})
	})
}

// TestNothingIsLost: a client that sends nothing a second time loses nothing while
// server after server is drained.
func TestNothingIsLost(t *testing.T) {
	nearAndFar(t, func(t *testing.T, s *site, addr string) {
		c := http2test.NewClient(func() (net.Conn, error) { return s.dial(addr) })
		defer c.Close()
		drainUnderLoad(t, s, func(worker int) error {
			piece := strings.Repeat("x", 1+100*worker)
			got, err := c.Post("/", piece, piece, "end")
			if err == nil && got != piece+piece+"end" {
				err = fmt.Errorf("answered %d bytes, want %d", len(got), 2*len(piece)+3)
			}
			return err
		})
		if n := c.Dials(); n < rounds {
			t.Errorf("the client has connected %d times, want once for each drain at least", n)
		}
	})
}

// TestNothingOfGoIsLost: so does Go's client, of requests whose bodies it can't read
// again, though answers have header blocks of several frames and bodies of many. It may
// refuse by itself what it has not begun to send, see http2test.
func TestNothingOfGoIsLost(t *testing.T) {
	nearAndFar(t, func(t *testing.T, s *site, addr string) {
		tr := newTransport(s)
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: tr, Timeout: wait.Limit}
		refused := atomic.Int64{}
		drainUnderLoad(t, s, func(worker int) error {
			path, want := "/", strings.Repeat("body of a POST ", 1+100*worker*worker)
			if worker%4 == 0 {
				path = "/?fields=40"
			}
			var begun atomic.Bool
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteHeaders: func() { begun.Store(true) }})
			// MultiReader hides from net/http how to read it again.
			req, err := http.NewRequestWithContext(ctx, "POST", s.scheme()+"://"+addr+path, io.MultiReader(strings.NewReader(want)))
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil && !begun.Load() && strings.HasSuffix(err.Error(), "cannot rewind body after connection loss") {
				refused.Add(1)
				return nil
			}
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != want {
				return fmt.Errorf("answered %d bytes, want %d, error %v", len(b), len(want), err)
			}
			return nil
		})
		t.Logf("Go's client has refused %d", refused.Load())
	})
}

// TestHeaderBlockIsNotCut: GOAWAY comes while answers with header blocks of several
// frames are written without a pause, and in none of them.
func TestHeaderBlockIsNotCut(t *testing.T) {
	s := newSite(t, false, echo)
	const streams = 100
	for range 3 {
		c := newClient(t, s, s.addr)
		c.hello()
		asked := make(chan struct{})
		go func() { // a part of its own header block is in CONTINUATION
			defer close(asked)
			for i := range uint32(streams) {
				id := 2*i + 1
				b := http2test.PostHeader("/?fields=40")
				// In one Write: the main goroutine acknowledges SETTINGS.
				c.c.Write(append(frame(typeHeaders, 1, id, b[:20]...), frame(typeContinuation, flagEndHeaders, id, b[20:]...)...))
			}
		}()
		c.answered(1, "")
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			s.drain(wait.Limit)
		}()
		if id := away(t, c.until(typeGoAway)); id != maxID {
			t.Fatalf("the first GOAWAY says %d, want 2^31-1", id)
		}
		c.until(typePing)
		wait.For(t, asked, "the requests to be sent")
		c.c.Write(frame(typePing, flagAck, 0, pingData[:]...))
		for i := range uint32(streams) {
			c.answered(2*i+1, "")
		}
		c.ends(maxID, 2*streams-1)
		wait.For(t, drained, "the end of the drain")
	}
}

// TestBeforeHello: a client that has not said hello is told when it has.
func TestBeforeHello(t *testing.T) {
	ways(t, func(t *testing.T, overTLS bool) {
		s := newSite(t, overTLS, echo)
		c := newClient(t, s, s.addr)
		c.send([]byte(http2test.Preface)[:9])
		conn := wait.For(t, s.last().come, "the connection")
		done := make(chan struct{})
		conn.GoAway(time.Hour, func() { close(done) })
		c.send([]byte(http2test.Preface)[9:])
		c.send(frame(typeSettings, 0, 0))
		if typ, _, err := c.read(); err != nil || typ != typeSettings {
			t.Fatalf("the first frame is of type %d, error %v; want SETTINGS", typ, err)
		}
		if id := away(t, c.until(typeGoAway)); id != maxID {
			t.Fatalf("the first GOAWAY says %d, want 2^31-1", id)
		}
		c.until(typePing)
		c.answered(c.post("late"), "late")
		select {
		case <-done:
			t.Error("done is called before the client has answered")
		default:
		}
		c.send(frame(typePing, flagAck, 0, pingData[:]...))
		wait.For(t, done, "done")
	})
}

// TestOwnGoAway: after a GOAWAY of the server, nothing is said that would take it back.
func TestOwnGoAway(t *testing.T) {
	begun := make(chan struct{})
	s := newSite(t, false, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		echo(w, r)
	})
	c := newClient(t, s, s.addr)
	c.hello()
	id := c.begin("/")
	c.until(typeSettings)
	conn := wait.For(t, s.last().come, "the connection")
	wait.For(t, begun, "the stream to be known") // settings come before it is
	go s.last().Shutdown(t.Context())
	if last := away(t, c.until(typeGoAway)); last != id {
		t.Fatalf("GOAWAY says %d, want %d", last, id)
	}
	done := make(chan struct{})
	conn.GoAway(time.Hour, func() { close(done) })
	c.finish(id, "body")
	c.answered(id, "body")
	c.ends(id)
	wait.For(t, done, "done, as the connection is closed")
}

// TestClosed: what is closed is not waited for.
func TestClosed(t *testing.T) {
	for _, first := range []string{"GoAway", "Close"} {
		a, b := net.Pipe()
		defer b.Close()
		c := New(a)
		done := make(chan struct{})
		goAway := func() { c.GoAway(time.Hour, func() { close(done) }) }
		if first == "GoAway" {
			goAway()
		}
		c.Close()
		if first == "Close" {
			goAway()
		}
		wait.For(t, done, "done")
		c.GoAway(0, func() { t.Error("done of a second call is called") })
		if first == "Close" {
			c.Close()
		}
	}
}

// TestClientDoesNotRead: a client that reads nothing holds no one up, and reads a
// stream of whole frames when it reads again.
func TestClientDoesNotRead(t *testing.T) {
	for _, within := range []string{"a frame", "GOAWAY"} {
		t.Run(within, func(t *testing.T) {
			a, b := net.Pipe() // a Write waits for its Reads
			s := newSite(t, false, echo)
			srv := s.last()
			served, conn := Serve(srv.Server, a)
			srv.feed <- served
			c := clientOf(t, b)
			b.SetDeadline(time.Now().Add(wait.Limit))
			go c.c.Write(append([]byte(http2test.Preface), frame(typeSettings, 0, 0)...))
			// The server's SETTINGS, WINDOW_UPDATE, and its acknowledgement.
			for acked := false; !acked; {
				typ, payload, err := c.read()
				if err != nil {
					t.Fatal(err)
				}
				acked = typ == typeSettings && len(payload) == 0
			}
			if within == "a frame" {
				c.send(frame(typeHeaders, 1|flagEndHeaders, 1, http2test.PostHeader("/")...))
				if _, err := b.Read(make([]byte, 0)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.in.Peek(1); err != nil { // a Write has begun
					t.Fatal(err)
				}
			}
			done := make(chan struct{})
			conn.GoAway(100*time.Millisecond, func() { close(done) })
			wait.For(t, done, "done")
			go srv.Shutdown(t.Context())
			first := away(t, c.until(typeGoAway))
			if first == maxID {
				c.until(typePing)
				first = away(t, c.until(typeGoAway))
			}
			if first > 1 {
				t.Errorf("the last GOAWAY says %d", first)
			}
			if within == "a frame" {
				c.answered(1, "")
			}
			c.ends(c.aways...)
		})
	}
}

// TestNoHTTP2: a client that has agreed on HTTP/2, and speaks HTTP/1, is not answered.
func TestNoHTTP2(t *testing.T) {
	s := newSite(t, true, func(http.ResponseWriter, *http.Request) { t.Error("it is served") })
	s.last().Protocols.SetHTTP1(true)
	c := newClient(t, s, s.addr)
	c.send([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"))
	b, _ := io.ReadAll(c.c)
	if strings.Contains(string(b), "HTTP") {
		t.Errorf("answered %q", b)
	}
}

// TestTimeIsOver: when the time is over before there was a place for it, GOAWAY with
// 2^31-1 is not sent any more: the server's own may be next.
func TestTimeIsOver(t *testing.T) {
	s := &sink{}
	c := New(s)
	c.Write(frame(typeSettings, 0, 0))
	done := make(chan struct{})
	c.GoAway(0, func() { close(done) })
	wait.For(t, done, "done")
	c.Write(frame(typeSettings, flagAck, 0))
	c.Write(frame(0, 0, 1, 'x'))
	if bytes.Contains(s.got, farewell) {
		t.Error("GOAWAY is sent when the time is over")
	}
}

// TestServeAsItIs: what the server would not take is given to it as it is.
func TestServeAsItIs(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	served, conn := Serve(&http.Server{}, a)
	if conn != nil || served != a {
		t.Errorf("a server without HTTP/2 is given %T", served)
	}
}

var errBroken = errors.New("broken")

// A broken connection fails each Write.
type broken struct{ net.Conn }

func (broken) Write([]byte) (int, error) { return 0, errBroken }

// TestWriteFails: an error is passed on.
func TestWriteFails(t *testing.T) {
	c := New(broken{})
	c.out.all(frame(typeSettings, flagAck, 0))
	if n, err := c.Write([]byte("x")); n != 0 || err != errBroken {
		t.Errorf("Write: %d, %v", n, err)
	}
	c.leave.Store(&leave{})
	for range 2 {
		if n, err := c.Write([]byte("x")); n != 0 || err != errBroken {
			t.Errorf("Write with our GOAWAY before it: %d, %v", n, err)
		}
	}
}
