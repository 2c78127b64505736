// Package tlstest has what tests of several packages need of TLS.
package tlstest

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Certificate gives a certificate for 127.0.0.1, and the configuration of a client that
// trusts it.
func Certificate(t testing.TB) (tls.Certificate, *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0], s.Client().Transport.(*http.Transport).TLSClientConfig
}
