package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Covers reports whether a server with this configuration would serve the connection of
// s if it were a new one, and if so what the connection's ConnectionState is to say.
// conn is the connection below, for functions of the configuration that look at its
// addresses; nothing is read from it or written to it. Covers asks
//
//   - for the certificate that the client would be shown, by Certificates,
//     NameToCertificate, GetCertificate, GetConfigForClient: it has to be valid for the
//     name that the client asked for, if it asked for one, so that no connection
//     that was opened to one name ends at a server of another;
//   - whether TLS 1.3 and the connection's ALPN protocol are served;
//   - whether the client's certificate is one that this configuration accepts: by
//     ClientAuth and ClientCAs, and by VerifyPeerCertificate and VerifyConnection. The
//     chains that it finds are those of the result. A connection that has a client
//     certificate is refused where none would be asked for, as crypto/tls refuses to
//     resume its session there.
//
// The functions of the configuration are told of this connection what is still known
// of it: the name, the protocol, cipher suite and curve, the connection and ctx. The
// rest of the ClientHelloInfo is that of a client in Go. One that panics is an error.
func Covers(ctx context.Context, conn net.Conn, s *State, config *tls.Config) (_ tls.ConnectionState, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a function of the TLS configuration panics: %v", p)
		}
		if err != nil {
			err = fmt.Errorf("tls13: the connection for %q can't be taken: %w", s.ServerName, err)
		}
	}()
	if config == nil {
		return tls.ConnectionState{}, errors.New("there is no TLS configuration")
	}
	cs, err := s.usable()
	if err != nil {
		return tls.ConnectionState{}, err
	}
	config, cert, err := s.choose(ctx, conn, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	if config.MaxVersion != 0 && config.MaxVersion < tls.VersionTLS13 {
		return tls.ConnectionState{}, fmt.Errorf("the configuration's MaxVersion is %s", tls.VersionName(config.MaxVersion))
	}
	if s.ALPN != "" && len(config.NextProtos) > 0 && !slices.Contains(config.NextProtos, s.ALPN) {
		return tls.ConnectionState{}, fmt.Errorf("it speaks %s, and the configuration only %q", s.ALPN, config.NextProtos)
	}
	if err := s.named(cert); err != nil {
		return tls.ConnectionState{}, err
	}
	if err := verifyClient(config, &cs); err != nil {
		return tls.ConnectionState{}, err
	}
	return cs, nil
}

// choose returns the certificate that a new connection like this one would be shown, and
// the configuration by which it would be served.
func (s *State) choose(ctx context.Context, conn net.Conn, config *tls.Config) (*tls.Config, *tls.Certificate, error) {
	if config.GetConfigForClient == nil && config.GetCertificate == nil {
		cert, err := certificateOf(config, s.describeTo(tls.ClientHelloInfo{}, conn))
		return config, cert, err
	}
	// These functions may ask the ClientHelloInfo for its context, which only crypto/tls
	// can put there. So they are called by it, in a handshake that ends with them.
	hello, err := helloBytes()
	if err != nil {
		return nil, nil, err
	}
	var cert *tls.Certificate
	asked := false
	probe := tls.Server(&halfPipe{r: bytes.NewReader(hello), addrs: conn}, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			asked = true
			info := s.describeTo(*h, conn)
			if f := config.GetConfigForClient; f != nil {
				own, e := f(info)
				if e != nil {
					err = fmt.Errorf("GetConfigForClient: %w", e)
					return nil, errAsked
				}
				if own != nil {
					config = own
				}
			}
			cert, err = certificateOf(config, info)
			return nil, errAsked
		},
	})
	if e := probe.HandshakeContext(ctx); !asked {
		return nil, nil, fmt.Errorf("the configuration could not be asked: %w", e)
	}
	return config, cert, err
}

var errAsked = errors.New("the configuration was asked")

// describeTo returns h with what is known of the connection.
func (s *State) describeTo(h tls.ClientHelloInfo, conn net.Conn) *tls.ClientHelloInfo {
	h.ServerName, h.Conn = s.ServerName, conn
	h.CipherSuites, h.SupportedVersions, h.SupportedProtos = []uint16{s.Suite}, []uint16{tls.VersionTLS13}, nil
	if s.ALPN != "" {
		h.SupportedProtos = []string{s.ALPN}
	}
	if s.Curve != 0 {
		h.SupportedCurves = []tls.CurveID{s.Curve}
	}
	return &h
}

// certificateOf chooses as the unexported getCertificate of crypto/tls does.
func certificateOf(config *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if f := config.GetCertificate; f != nil && (len(config.Certificates) == 0 || hello.ServerName != "") {
		cert, err := f(hello)
		if err != nil {
			return nil, fmt.Errorf("GetCertificate: %w", err)
		}
		if cert != nil {
			return cert, nil
		}
	}
	switch len(config.Certificates) {
	case 0:
		return nil, errors.New("the configuration has no certificate")
	case 1:
		return &config.Certificates[0], nil
	}
	//lint:ignore SA1019 crypto/tls looks there first, deprecated or not
	byName := config.NameToCertificate
	if name := strings.ToLower(hello.ServerName); byName != nil {
		if cert, ok := byName[name]; ok {
			return cert, nil
		}
		labels := strings.Split(name, ".")
		labels[0] = "*"
		if cert, ok := byName[strings.Join(labels, ".")]; ok && name != "" {
			return cert, nil
		}
	}
	for i := range config.Certificates {
		if hello.SupportsCertificate(&config.Certificates[i]) == nil {
			return &config.Certificates[i], nil
		}
	}
	return &config.Certificates[0], nil
}

// named reports whether the certificate is valid for the name that the client asked for.
// A client that sent none knows the server by an address or by the certificate itself;
// it is enough that there is one. Nor does it matter here when the certificate expires:
// the client has seen another one.
func (s *State) named(cert *tls.Certificate) error {
	if cert == nil {
		return errors.New("the configuration's certificate is nil")
	}
	leaf := cert.Leaf
	if leaf == nil {
		if len(cert.Certificate) == 0 {
			return errors.New("the configuration's certificate is empty")
		}
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("the configuration's certificate: %w", err)
		}
	}
	if s.ServerName == "" {
		return nil
	}
	return leaf.VerifyHostname(s.ServerName)
}

// verifyClient judges the client's certificates as a handshake would, and adds the
// chains to cs.
func verifyClient(config *tls.Config, cs *tls.ConnectionState) error {
	certs := cs.PeerCertificates
	auth := config.ClientAuth
	switch {
	case len(certs) > 0 && auth == tls.NoClientCert:
		return errors.New("the client has shown a certificate, and this configuration asks for none")
	case len(certs) == 0 && (auth == tls.RequireAnyClientCert || auth == tls.RequireAndVerifyClientCert):
		return errors.New("the client has shown no certificate, and this configuration requires one")
	}
	if len(certs) > 0 && auth >= tls.VerifyClientCertIfGiven {
		now := time.Now
		if config.Time != nil {
			now = config.Time
		}
		opts := x509.VerifyOptions{
			Roots: config.ClientCAs, CurrentTime: now(), Intermediates: x509.NewCertPool(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		for _, c := range certs[1:] {
			opts.Intermediates.AddCert(c)
		}
		chains, err := certs[0].Verify(opts)
		if err != nil {
			return fmt.Errorf("the client's certificate: %w", err)
		}
		cs.VerifiedChains = chains
	}
	if f := config.VerifyPeerCertificate; f != nil && auth != tls.NoClientCert {
		raw := make([][]byte, len(certs))
		for i, c := range certs {
			raw[i] = c.Raw
		}
		if err := f(raw, cs.VerifiedChains); err != nil {
			return fmt.Errorf("VerifyPeerCertificate: %w", err)
		}
	}
	if f := config.VerifyConnection; f != nil {
		if err := f(*cs); err != nil {
			return fmt.Errorf("VerifyConnection: %w", err)
		}
	}
	return nil
}

// helloBytes returns a ClientHello of Go's.
var helloBytes = sync.OnceValues(func() ([]byte, error) {
	var hello bytes.Buffer
	client := tls.Client(&halfPipe{r: bytes.NewReader(nil), w: &hello}, &tls.Config{
		ServerName: checkName, NextProtos: []string{protoHTTP1}, MinVersion: tls.VersionTLS13,
	})
	err := client.Handshake()
	client.Close()
	if hello.Len() == 0 {
		return nil, fmt.Errorf("no ClientHello can be made: %w", err)
	}
	return hello.Bytes(), nil
})

// A halfPipe is a connection whose client has said all that it will say.
type halfPipe struct {
	net.Conn // nil: the methods below are all that a handshake calls
	r        *bytes.Reader
	w        *bytes.Buffer // may be nil
	addrs    net.Conn
}

func (p *halfPipe) Read(b []byte) (int, error) { return p.r.Read(b) }

func (p *halfPipe) Write(b []byte) (int, error) {
	if p.w != nil {
		p.w.Write(b)
	}
	return len(b), nil
}

func (p *halfPipe) Close() error                     { return nil }
func (p *halfPipe) LocalAddr() net.Addr              { return p.addrs.LocalAddr() }
func (p *halfPipe) RemoteAddr() net.Addr             { return p.addrs.RemoteAddr() }
func (p *halfPipe) SetDeadline(time.Time) error      { return nil }
func (p *halfPipe) SetReadDeadline(time.Time) error  { return nil }
func (p *halfPipe) SetWriteDeadline(time.Time) error { return nil }

// usable gives the ConnectionState of a state that this process may serve on, whatever its
// configuration.
func (s *State) usable() (tls.ConnectionState, error) {
	if err := allowed(); err != nil {
		return tls.ConnectionState{}, err
	}
	if err := s.check(); err != nil {
		return tls.ConnectionState{}, err
	}
	return s.ConnectionState()
}
