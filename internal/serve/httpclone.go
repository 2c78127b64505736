package serve

import (
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
)

// clone copies all fields of a server that can be set, also those that a later Go
// adds.
func clone(s *http.Server) *http.Server {
	c := new(http.Server)
	from, to := reflect.ValueOf(s).Elem(), reflect.ValueOf(c).Elem()
	for i := range from.NumField() {
		if from.Type().Field(i).IsExported() {
			to.Field(i).Set(from.Field(i))
		}
	}
	if keepAlivesDisabled(s) {
		c.SetKeepAlivesEnabled(false)
	}
	return c
}

// keepAlivesDisabled reports whether SetKeepAlivesEnabled(false) was called,
// which net/http does not make known. If it keeps that elsewhere one day, the
// answer is no.
func keepAlivesDisabled(s *http.Server) bool {
	f := reflect.ValueOf(s).Elem().FieldByName("disableKeepAlives")
	if f.Kind() != reflect.Struct {
		return false
	}
	v := f.FieldByName("v")
	return v.Kind() == reflect.Uint32 && v.Uint() != 0
}

// noProtocols keeps net/http from setting up HTTP/2.
func noProtocols() map[string]func(*http.Server, *tls.Conn, http.Handler) {
	return map[string]func(*http.Server, *tls.Conn, http.Handler){}
}

// closedListener lets a server set itself up, and return.
type closedListener struct{}

func (closedListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closedListener) Close() error              { return nil }
func (closedListener) Addr() net.Addr            { return &net.TCPAddr{} }

// speaks reports which protocols net/http would serve with s, the user's server
// as it was given. Only net/http itself knows: GODEBUG may switch HTTP/2 off.
func speaks(s *http.Server) (http1, overTLS, unencrypted bool, err error) {
	probe := clone(s)
	probe.ConnState, probe.BaseContext, probe.ConnContext = nil, nil, nil
	probe.TLSNextProto = maps.Clone(s.TLSNextProto)
	config := &tls.Config{}
	if s.TLSConfig != nil {
		config = s.TLSConfig.Clone()
	}
	config.NextProtos = append(slices.Clone(config.NextProtos), "h2")
	probe.TLSConfig = config
	if err := probe.Serve(closedListener{}); !errors.Is(err, net.ErrClosed) {
		return false, false, false, err // such as cipher suites that HTTP/2 forbids
	}
	_, http2 := probe.TLSNextProto["h2"]
	p := s.Protocols
	if p == nil {
		return true, http2, false, nil
	}
	return p.HTTP1() || *p == (http.Protocols{}), http2 && p.HTTP2(), http2 && p.UnencryptedHTTP2(), nil
}

// tlsConfig is the configuration that ServeTLS would use.
func tlsConfig(s *http.Server, http1, http2 bool, certFile, keyFile string) (*tls.Config, error) {
	config := &tls.Config{}
	if s.TLSConfig != nil {
		config = s.TLSConfig.Clone()
	}
	protos := slices.DeleteFunc(slices.Clone(config.NextProtos), func(proto string) bool {
		return proto == "h2" && !http2 || proto == "http/1.1" && !http1
	})
	if http2 && !slices.Contains(protos, "h2") {
		protos = append(protos, "h2")
	}
	if http1 && !slices.Contains(protos, "http/1.1") {
		protos = append(protos, "http/1.1")
	}
	config.NextProtos = protos
	has := len(config.Certificates) > 0 || config.GetCertificate != nil || config.GetConfigForClient != nil
	if !has || certFile != "" || keyFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}
