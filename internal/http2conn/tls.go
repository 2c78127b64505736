package http2conn

import (
	"crypto/tls"
	"net"
	"net/http"
	"reflect"
	"slices"
	"time"
)

// A TLSConn is a [Conn] over TLS that says so: net/http reads ConnectionState.
type TLSConn struct {
	*Conn
	state func() tls.ConnectionState
}

// ConnectionState is that of the connection below.
func (c *TLSConn) ConnectionState() tls.ConnectionState { return c.state() }

// Of returns the Conn that c is, if it is one, and else nil.
func Of(c net.Conn) *Conn {
	switch c := c.(type) {
	case *Conn:
		return c
	case *TLSConn:
		return c.Conn
	}
	return nil
}

// A stater is a *tls.Conn, or what takes its place.
type stater interface {
	ConnectionState() tls.ConnectionState
}

// Serve returns what srv, by its Serve, is to be given of c, a connection whose client
// speaks HTTP/2; and the Conn that is in it, or nil if srv would not take one. srv has
// set itself up: a Serve of it has begun or ended.
//
// A connection without TLS is served by any srv that has
// [net/http.Protocols.SetUnencryptedHTTP2]. With TLS it depends on the version. From Go
// 1.27 on net/http serves HTTP/2 on any connection whose ConnectionState says that
// ALPN has chosen h2. Before, and if srv has an HTTP/2 of golang.org/x/net from before,
// it does so on a *tls.Conn only, which nothing can be put in front of. But it also
// serves HTTP/2 on what it takes for a connection without TLS: so there the Conn is one
// without ConnectionState, and the caller sets Request.TLS to what [Conn.Hidden]
// returns. A connection for which net/http would look at ConnectionState, and refuse it
// (RFC 9113, section 9.2), is given to it as it is.
func Serve(srv *http.Server, c net.Conn) (served net.Conn, conn *Conn) {
	conn = New(c)
	if s, overTLS := c.(stater); overTLS {
		state := s.ConnectionState()
		if takesAny(srv) && state.NegotiatedProtocol == "h2" {
			return &TLSConn{conn, s.ConnectionState}, conn
		}
		if _, ok := srv.TLSNextProto["unencrypted_http2"]; !ok || !isSound(state) {
			return c, nil
		}
		conn.hidden = &state
	}
	if srv.Protocols == nil || !srv.Protocols.UnencryptedHTTP2() {
		return c, nil
	}
	if conn.hidden != nil {
		conn.limited = true
		c.SetReadDeadline(time.Now().Add(prefaceTimeout))
	}
	return conn, conn
}

// Hidden returns the state of a connection over TLS that is served as if it had none,
// and else nil.
func (c *Conn) Hidden() *tls.ConnectionState { return c.hidden }

// prefaceTimeout is how long net/http waits for the preface after a handshake. Without
// TLS it waits as long as for the header of a request.
const prefaceTimeout = 10 * time.Second

// takesAny reports whether srv serves HTTP/2 on any connection with ConnectionState. It
// does if it has net/http's own HTTP/2 of Go 1.27 or later, which is not to be seen from
// outside. If net/http keeps that elsewhere one day, the answer is no, and the other way
// is taken, which it knows as well.
func takesAny(srv *http.Server) bool {
	f := reflect.ValueOf(srv).Elem().FieldByName("h2")
	return f.Kind() == reflect.Pointer && !f.IsNil()
}

// soundSuites are those cipher suites of TLS 1.2 that crypto/tls has and HTTP/2 does
// not forbid (RFC 9113, appendix A).
var soundSuites = []uint16{
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}

// isSound reports whether the connection is of those that HTTP/2 allows. Others may be
// allowed by the server's settings: that is net/http's to say.
func isSound(s tls.ConnectionState) bool {
	return s.NegotiatedProtocol == "h2" &&
		(s.Version >= tls.VersionTLS13 || s.Version == tls.VersionTLS12 && slices.Contains(soundSuites, s.CipherSuite))
}
