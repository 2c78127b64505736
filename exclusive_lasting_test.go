//go:build unix

package grace

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// A talk is a stream whose handler says what the test wants, and which has a client.
type talk struct {
	t       *testing.T
	hijacks bool
	listens bool // to Draining

	began  chan struct{} // has an element for each call of the handler
	says   chan string   // what the handler is to say next
	over   chan struct{} // closed: it returns
	ended  chan string   // why the handler has returned
	busy   atomic.Bool   // it has not
	answer *bufio.Reader // the client's
}

func newTalk(t *testing.T, hijacks, listens bool) *talk {
	return &talk{
		t: t, hijacks: hijacks, listens: listens,
		began: make(chan struct{}, 9), says: make(chan string), over: make(chan struct{}), ended: make(chan string, 9),
	}
}

func (k *talk) serve(w http.ResponseWriter, r *http.Request) {
	say := func(line string) {
		fmt.Fprintln(w, line)
		http.NewResponseController(w).Flush()
	}
	gone := r.Context().Done()
	if k.hijacks {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			k.t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
		say = func(line string) { fmt.Fprintln(c, line) }
		end := make(chan struct{})
		gone = end
		go func() {
			defer close(end)
			io.Copy(io.Discard, rw)
		}()
	}
	var draining <-chan struct{}
	if k.listens {
		draining = Draining(r.Context())
	}
	why := ""
	k.busy.Store(true)
	defer k.busy.Store(false)
	say("hello")
	k.began <- struct{}{}
	for why == "" {
		select {
		case line := <-k.says:
			say(line)
		case <-draining:
			why = "goodbye"
			say(why)
		case <-k.over:
			why = "over"
			say(why)
		case <-gone:
			why = "cut off"
			time.Sleep(50 * time.Millisecond) // it has something to put away, with the state
		}
	}
	k.ended <- why
}

// open begins it. HTTP/1 is without TLS.
func (k *talk) open(b *bank, client *http.Client) {
	k.t.Helper()
	scheme := "http://"
	if b.tls != nil {
		scheme = "https://"
	}
	resp, err := client.Get(scheme + b.addr.String() + "/stream")
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { resp.Body.Close() })
	if k.hijacks != (resp.ProtoMajor == 1) {
		k.t.Fatalf("the client speaks %s", resp.Proto)
	}
	k.answer = bufio.NewReader(resp.Body)
	receive(k.t, k.began, "the stream")
	k.hears("hello")
}

// hears reads a line of the handler.
func (k *talk) hears(want string) {
	k.t.Helper()
	if got, err := k.answer.ReadString('\n'); got != want+"\n" {
		k.t.Fatalf("the client reads %q, %v; want %q", got, err, want)
	}
}

// lives lets the handler say something, which must arrive.
func (k *talk) lives(word string) {
	k.t.Helper()
	select {
	case k.says <- word:
	case why := <-k.ended:
		k.t.Fatalf("the handler has returned: %s", why)
	}
	k.hears(word)
}

// endsAs waits for the end of the handler, and of what the client reads.
func (k *talk) endsAs(why string) {
	k.t.Helper()
	if why != "cut off" {
		k.hears(why)
	}
	rest, err := io.ReadAll(k.answer)
	if len(rest) > 0 || (err == nil) != (why != "cut off") && !k.hijacks {
		k.t.Errorf("at the end the client reads %q, %v", rest, err)
	}
	if got := receive(k.t, k.ended, "the end of the handler"); got != why {
		k.t.Errorf("the handler has ended as %q, want %q", got, why)
	}
}

// inLog is what the log calls it.
func (k *talk) inLog() string {
	if k.hijacks {
		return "(hijacked)"
	}
	return "(HTTP/2)"
}

// bankWithTalks gives a bank that serves k at /stream, over HTTP/2 or as a connection that is
// hijacked, and a client of it. Its vault must not be released while the handler runs.
func bankWithTalks(t *testing.T, k *talk, opts ...Option) (*bank, *http.Client) {
	t.Helper()
	b := newBank(t, opts...)
	b.stream = k.serve
	b.v.fail = func(call string) error {
		if call == "1 release" && k.busy.Load() {
			t.Error("released, and the handler of the stream has not returned")
		}
		return nil
	}
	tr := &http.Transport{ForceAttemptHTTP2: !k.hijacks}
	if !k.hijacks {
		cert, trusts := tlstest.Certificate(t)
		b.tls, tr.TLSClientConfig = &tls.Config{Certificates: []tls.Certificate{cert}}, trusts
	}
	t.Cleanup(tr.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	t.Cleanup(cancel)
	return b, &http.Client{Transport: withContext{tr, ctx}}
}

// withContext ends requests with ctx, and what is read of their answers.
type withContext struct {
	http.RoundTripper
	ctx context.Context
}

func (w withContext) RoundTrip(r *http.Request) (*http.Response, error) {
	return w.RoundTripper.RoundTrip(r.WithContext(w.ctx))
}

// TestExclusiveLasting: a hijacked connection and a stream of HTTP/2 are waited for in the
// pause, and have the vault until they end. One that does not end is worth more than the
// upgrade, or is cut off, as CutAtRelease says, and the log names it.
func TestExclusiveLasting(t *testing.T) {
	for what, hijacks := range map[string]bool{"hijacked": true, "HTTP2": false} {
		t.Run(what, func(t *testing.T) {
			t.Run("it listens to Draining", func(t *testing.T) {
				k := newTalk(t, hijacks, true)
				b, client := bankWithTalks(t, k)
				first := b.first()
				k.open(b, client)
				done := first.upgrade()
				k.endsAs("goodbye")
				if err := receive(t, done, "Upgrade"); err != nil {
					t.Error(err)
				}
				b.v.want(t, "1 acquire", "1 release", "2 acquire")
			})
			t.Run("it ends in time", func(t *testing.T) {
				k := newTalk(t, hijacks, false)
				b, client := bankWithTalks(t, k)
				first := b.first()
				k.open(b, client)
				done := first.upgrade()
				first.await(releasing)
				for range 50 { // time enough to release
					k.lives("in the pause")
				}
				b.v.want(t, "1 acquire")
				close(k.over)
				k.endsAs("over")
				if err := receive(t, done, "Upgrade"); err != nil {
					t.Error(err)
				}
				b.v.want(t, "1 acquire", "1 release", "2 acquire")
			})
			t.Run("the upgrade is refused", func(t *testing.T) {
				k := newTalk(t, hijacks, false)
				b, client := bankWithTalks(t, k)
				lines := b.logs(1)
				first := b.first()
				k.open(b, client)
				done := first.upgrade()
				first.await(releasing)
				pause{first: first}.endIt()
				wantErr(t, receive(t, done, "Upgrade"), ErrExclusive)
				awaitLine(t, lines, "grace: not finished in time, so that exclusive state is kept, and the upgrade given up")
				awaitLine(t, lines, k.inLog())
				k.lives("after the pause")
				first.await(serving)
				b.v.want(t, "1 acquire")
				close(k.over)
				k.endsAs("over")
				if err := receive(t, first.upgrade(), "the next upgrade"); err != nil {
					t.Error(err)
				}
				b.v.want(t, "1 acquire", "1 release", "3 acquire")
			})
			t.Run("it is cut off", func(t *testing.T) {
				k := newTalk(t, hijacks, false)
				b, client := bankWithTalks(t, k, CutAtRelease(true))
				lines := b.logs(1)
				first := b.first()
				k.open(b, client)
				done := first.upgrade()
				first.await(releasing)
				k.lives("in the pause")
				pause{first: first}.endIt()
				k.endsAs("cut off")
				if err := receive(t, done, "Upgrade"); err != nil {
					t.Error(err)
				}
				awaitLine(t, lines, "grace: not finished in time, and cut off, so that exclusive state can be released")
				awaitLine(t, lines, k.inLog())
				b.v.want(t, "1 acquire", "1 release", "2 acquire")
			})
		})
	}
}

// TestExclusiveOnShutdown: what was registered with RegisterOnShutdown is called when the
// pause begins, before the vault is released; once in a process, also if that upgrade fails.
// Of the next one Draining tells handlers.
func TestExclusiveOnShutdown(t *testing.T) {
	k := newTalk(t, true, true)
	b, client := bankWithTalks(t, k)
	var called atomic.Int32
	shut := make(chan int, 9) // has the generation for each call
	b.server = func(g *generation, srv *http.Server) {
		srv.RegisterOnShutdown(func() {
			called.Add(1)
			shut <- g.n
		})
	}
	b.v.fail = func(call string) error {
		switch call {
		case "1 release":
			if called.Load() == 0 {
				t.Error("released, and what was registered was not called")
			}
		case "2 acquire":
			return errors.New("no")
		}
		return nil
	}
	first := b.first()
	p := b.pause(t, first)
	if n := receive(t, shut, "what was registered"); n != 1 {
		t.Errorf("called in generation %d", n)
	}
	b.v.want(t, "1 acquire") // a request is under way still
	close(b.go1)
	p.busy.reads("1")
	if err := receive(t, p.done, "Upgrade"); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("Upgrade returned %v", err)
	}
	p.areAnswered("1")
	first.await(serving)
	k.open(b, client)
	done := first.upgrade()
	k.endsAs("goodbye")
	if err := receive(t, done, "the next upgrade"); err != nil {
		t.Error(err)
	}
	receive(t, first.Done(), "Done")
	if n := called.Load(); n != 1 {
		t.Errorf("called %d times, want once", n)
	}
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "1 acquire", "1 release", "3 acquire")
}
