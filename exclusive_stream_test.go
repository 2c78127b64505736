//go:build unix

package grace

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// TestExclusiveEndsStreams: a stream would be in the way of release for ever; its handler
// is told, and says goodbye. If the upgrade fails, it is as if it had not been told.
func TestExclusiveEndsStreams(t *testing.T) {
	b := newBank(t)
	began := make(chan struct{}, 9)
	b.stream = func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-Draining(r.Context())
		fmt.Fprint(w, "goodbye")
	}
	b.v.fail = func(call string) error {
		if call == "2 acquire" {
			return errors.New("no")
		}
		return nil
	}
	first := b.first()
	stream := b.visit(t)
	stream.send("/stream")
	receive(t, began, "the stream")
	if err := receive(t, first.upgrade(), "Upgrade"); err == nil {
		t.Error("the upgrade has not failed")
	}
	stream.reads("goodbye")
	first.await(serving)
	select {
	case <-first.Draining():
		t.Error("the process serves again, and Draining says that it drains")
	default:
	}
	second := b.visit(t)
	second.send("/stream")
	receive(t, began, "the second stream")
	if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
		t.Error(err)
	}
	second.reads("goodbye")
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "1 acquire", "1 release", "3 acquire")
}

// TestExclusiveTLS: what can't move is finished, and the clients' next connections wait.
func TestExclusiveTLS(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			cert, trusts := tlstest.Certificate(t)
			b := newBank(t)
			b.tls = &tls.Config{Certificates: []tls.Certificate{cert}}
			first := b.first()
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: trusts.Clone(), ForceAttemptHTTP2: http2}, Timeout: limit}
			defer client.CloseIdleConnections()
			get := func(path string) <-chan string {
				answer := make(chan string, 1)
				go func() {
					resp, err := client.Get("https://" + b.addr.String() + path)
					if err != nil {
						answer <- err.Error()
						return
					}
					defer resp.Body.Close()
					body, _ := io.ReadAll(resp.Body)
					answer <- fmt.Sprintf("%s HTTP/%d", body, resp.ProtoMajor)
				}()
				return answer
			}
			want := " HTTP/1"
			if http2 {
				want = " HTTP/2"
			}
			busy := get("/slow")
			receive(t, b.slow, "the slow request")
			done := first.upgrade()
			first.await(releasing)
			other := b.visit(t)
			trusts.ServerName = "127.0.0.1"
			late := &visitor{t, tls.Client(other.Conn, trusts.Clone()), nil}
			late.in = bufio.NewReader(late.Conn)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				fmt.Fprint(late, "GET / HTTP/1.1\r\nHost: bank\r\n\r\n")
			}()
			b.v.want(t, "1 acquire")
			close(b.go1)
			if got := receive(t, busy, "the slow answer"); got != "1"+want {
				t.Errorf("got %q, want %q", got, "1"+want)
			}
			receive(t, answered, "the handshake of the connection that came in the pause")
			// An Accept, or a stream, may have been under way: then the first generation
			// has answered, while it had the vault.
			if resp, err := http.ReadResponse(late.in, nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Error("the connection that came in the pause:", resp, err)
			}
			if got := receive(t, get("/"), "the next answer"); got != "1"+want && got != "2"+want {
				t.Errorf("got %q, want an answer", got)
			}
			if err := receive(t, done, "Upgrade"); err != nil {
				t.Error(err)
			}
			if got := receive(t, get("/"), "the last answer"); got != "2"+want {
				t.Errorf("got %q, want %q", got, "2"+want)
			}
			b.v.want(t, "1 acquire", "1 release", "2 acquire")
		})
	}
}

// TestExclusiveMovesTLS: with MoveTLS an idle TLS connection is held, and comes back if the
// upgrade fails, or moves.
func TestExclusiveMovesTLS(t *testing.T) {
	cert, trusts := tlstest.Certificate(t)
	trusts.ServerName = "127.0.0.1"
	b := newBank(t, MoveTLS(true), IdleGrace(time.Minute))
	b.tls = &tls.Config{Certificates: []tls.Certificate{cert}}
	b.v.fail = func(call string) error {
		if call == "2 acquire" {
			return errors.New("no")
		}
		return nil
	}
	first := b.first()
	idle := b.visit(t)
	idle.Conn = tls.Client(idle.Conn, trusts)
	idle.in = bufio.NewReader(idle.Conn)
	idle.ask("1")
	wantErr(t, receive(t, first.upgrade(), "Upgrade"), ErrExited)
	idle.ask("1")
	if err := receive(t, first.upgrade(), "Upgrade"); err != nil {
		t.Error(err)
	}
	idle.ask("3")
	b.v.want(t, "1 acquire", "1 release", "2 acquire", "1 acquire", "1 release", "3 acquire")
}
