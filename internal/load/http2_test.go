package load

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// serveTLS serves from ln, which it does not close, both protocols over TLS.
func serveTLS(t *testing.T, ln net.Listener, cert tls.Certificate) *http.Server {
	t.Helper()
	srv := &http.Server{Handler: Handler(), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	done := make(chan struct{})
	go func() { defer close(done); srv.ServeTLS(keepOpen{ln}, "", "") }()
	t.Cleanup(func() { ln.Close(); srv.Close(); <-done })
	return srv
}

func secure(t *testing.T, n int) (ln net.Listener, cert tls.Certificate, cfg Config) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, trust := tlstest.Certificate(t)
	trust.ServerName = "127.0.0.1"
	cfg = Config{TLSAddr: ln.Addr().String(), Trust: trust, Kinds: map[Kind]int{}}
	for _, k := range SecureKinds {
		cfg.Kinds[k] = n
	}
	return ln, cert, cfg
}

func TestSecureKinds(t *testing.T) {
	for _, delay := range []time.Duration{0, 2 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			ln, cert, cfg := secure(t, 2)
			serveTLS(t, ln, cert)
			cfg.Delay = delay
			r := start(t, cfg)
			until(t, r, "ten answers to each kind", answers(10))
			wantHealthy(t, r.Stop())
		})
	}
	if _, err := Start(context.Background(), Config{Kinds: map[Kind]int{HTTP2: 1}}); err == nil {
		t.Error("Start took HTTP/2 without an address for it")
	}
}

// TestSeesShutdownOverTLS: net/http's Shutdown loses requests of both kinds, though
// another server takes over the listener. A client of HTTP/2 whose requests are dropped
// in silence waits for them until its time is up, or the connection ends.
func TestSeesShutdownOverTLS(t *testing.T) {
	ln, cert, cfg := secure(t, 16)
	cfg.Delay, cfg.Pause = 2*time.Millisecond, 10*time.Millisecond
	srv := serveTLS(t, ln, cert)
	r := start(t, cfg)
	until(t, r, "a lost request of each kind", func(rep Report) bool {
		old := srv
		srv = serveTLS(t, ln, cert)
		ln.(*net.TCPListener).SetDeadline(time.Unix(1, 0)) // wakes the old listener
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := old.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		ln.(*net.TCPListener).SetDeadline(time.Time{})
		return rep.Kinds[TLS].Losses() > 0 && rep.Kinds[HTTP2].Losses() > 0 && rep.Kinds[HTTP2].Opened > 32
	})
}
