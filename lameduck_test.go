//go:build unix

package grace

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"syscall"
	"testing"
	"time"
)

// newLame gives a process that goes on accepting for an hour when it is told to stop.
func newLame(t *testing.T, told eventLog) (u *Upgrader, get func(client *http.Client, path string) (code int, closes, reused bool), ran <-chan error) {
	t.Helper()
	u, ln := newSolo(t, LameDuck(time.Hour), IdleGrace(10*time.Millisecond), told.option())
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", Readiness)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	srv := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	u.HTTP(srv, ln)
	c := make(chan error, 1)
	go func() { c <- u.Run(context.Background()) }()
	get = func(client *http.Client, path string) (code int, closes, reused bool) {
		t.Helper()
		trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }}
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://"+ln.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, resp.Close, reused
	}
	return u, get, c
}

func newClient(t *testing.T, http2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Timeout: limit, Transport: tr}
}

// TestLameDuck: told to stop, the process accepts still, sends its clients away, and is not
// ready; then it drains.
func TestLameDuck(t *testing.T) {
	told := make(eventLog, 99)
	u, get, ran := newLame(t, told)
	one, two := newClient(t, false), newClient(t, true)
	for _, client := range []*http.Client{one, two} {
		if code, closes, _ := get(client, "/ready"); code != http.StatusOK || closes {
			t.Errorf("before the stop: status %d, Connection: close: %v", code, closes)
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- u.Shutdown(context.Background()) }()
	told.await(t, EventLameDuck)
	if got := u.State(); got != StateLameDuck || got.String() != "lame duck" {
		t.Errorf("the state is %v", got)
	}
	if isClosed(u.Draining()) {
		t.Error("it drains while it accepts still")
	}
	wantErr(t, u.Upgrade(t.Context()), ErrStopped)
	wantErr(t, told.await(t, EventRefused).Err, ErrStopped)
	for i, path := range []string{"/ready", "/ready", "/"} {
		want := http.StatusServiceUnavailable
		if path == "/" {
			want = http.StatusOK
		}
		if code, closes, reused := get(one, path); code != want || !closes || reused != (i == 0) {
			t.Errorf("request %d, %s: status %d, Connection: close: %v, on a connection from before: %v", i, path, code, closes, reused)
		}
	}
	for range 2 { // the connection from before, and one that has come since
		until(t, "GOAWAY", func() bool { _, _, reused := get(two, "/"); return !reused })
	}
	if code, _, _ := get(two, "/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("HTTP/2: status %d", code)
	}
	if got := told.kinds(); len(got) > 0 {
		t.Errorf("the program was told %q", got)
	}
	u.happen(evLameOver{})
	told.await(t, EventDraining)
	two.CloseIdleConnections()
	if err := receive(t, stopped, "Shutdown"); err != nil {
		t.Error(err)
	}
	if err := receive(t, ran, "Run"); err != nil {
		t.Error(err)
	}
}

// TestLameDuckIsCutShort: what makes a stop urgent ends it; an Abort has none.
func TestLameDuckIsCutShort(t *testing.T) {
	for name, end := range map[string]func(u *Upgrader, lame func()){
		"a second signal": func(u *Upgrader, lame func()) {
			at := time.Now()
			u.happen(evStop{stopRequest{signal: syscall.SIGTERM, at: at}})
			lame()
			u.happen(evStop{stopRequest{signal: syscall.SIGTERM, at: at.Add(time.Second)}})
		},
		"Close": func(u *Upgrader, lame func()) { u.askStop(); lame(); u.Close() },
		"the end of Shutdown's context": func(u *Upgrader, lame func()) {
			ctx, cancel := context.WithCancel(context.Background())
			go func() { lame(); cancel() }()
			u.Shutdown(ctx)
		},
		"Abort": func(u *Upgrader, _ func()) { u.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			told := make(eventLog, 99)
			u, _, ran := newLame(t, told)
			told.await(t, EventReady)
			end(u, func() { told.await(t, EventLameDuck) })
			if err := receive(t, ran, "Run"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadinessElsewhere: a server that is not ours has no answer.
func TestReadinessElsewhere(t *testing.T) {
	w := httptest.NewRecorder()
	Readiness(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("status %d", w.Code)
	}
}
