package serve

import (
	"net/http"
	"reflect"
	"time"
)

// enableH2C lets a server speak HTTP/2 without TLS by itself if its handler is
// that of h2c.NewHandler, of golang.org/x/net. That handler takes such
// connections away from net/http, so that from Go 1.27 on no GOAWAY can be sent
// on them, and before that only if the program has called http2.ConfigureServer
// too. Its requests come to the same handler either way, and with the settings of
// its http2.Server.
func enableH2C(srv *http.Server) {
	h := reflect.ValueOf(srv.Handler)
	if h.Kind() != reflect.Pointer || h.IsNil() || h.Type().Elem().PkgPath() != "golang.org/x/net/http2/h2c" {
		return
	}
	p := new(http.Protocols)
	if srv.Protocols != nil {
		*p = *srv.Protocols
	} else {
		_, http2 := srv.TLSNextProto["h2"]
		p.SetHTTP1(true)
		p.SetHTTP2(http2 || srv.TLSNextProto == nil)
	}
	p.SetUnencryptedHTTP2(true)
	srv.Protocols = p
	if f := h.Elem(); srv.HTTP2 == nil && f.Kind() == reflect.Struct {
		srv.HTTP2 = settingsOf(f.FieldByName("s"))
	}
}

// settingsOf returns the settings of an *http2.Server in net/http's form; nil if
// there are none, or if v is something else one day.
func settingsOf(v reflect.Value) *http.HTTP2Config {
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	v = v.Elem()
	number := func(name string) int {
		switch f := v.FieldByName(name); {
		case f.CanUint():
			return int(f.Uint())
		case f.CanInt():
			return int(f.Int())
		}
		return 0
	}
	permit := v.FieldByName("PermitProhibitedCipherSuites")
	c := &http.HTTP2Config{
		MaxConcurrentStreams:          number("MaxConcurrentStreams"),
		MaxDecoderHeaderTableSize:     number("MaxDecoderHeaderTableSize"),
		MaxEncoderHeaderTableSize:     number("MaxEncoderHeaderTableSize"),
		MaxReadFrameSize:              number("MaxReadFrameSize"),
		MaxReceiveBufferPerConnection: number("MaxUploadBufferPerConnection"),
		MaxReceiveBufferPerStream:     number("MaxUploadBufferPerStream"),
		SendPingTimeout:               time.Duration(number("ReadIdleTimeout")),
		PingTimeout:                   time.Duration(number("PingTimeout")),
		WriteByteTimeout:              time.Duration(number("WriteByteTimeout")),
		PermitProhibitedCipherSuites:  permit.Kind() == reflect.Bool && permit.Bool(),
	}
	if reflect.ValueOf(*c).IsZero() {
		return nil
	}
	return c
}
