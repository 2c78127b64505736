package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestCovers(t *testing.T) {
	mine, other := worldCert(), world().issue(t, "other.test")
	wild := world().issue(t, "*.example.test")
	parsed := mine
	parsed.Leaf = parse(t, mine.Certificate[0])
	conn := &script{}
	wrong := errors.New("no such name")
	of := func(certs ...tls.Certificate) *tls.Config { return &tls.Config{Certificates: certs} }
	get := func(cert *tls.Certificate, err error) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, err }
	}
	type changes func(*State)
	for name, c := range map[string]struct {
		state  changes
		config *tls.Config
		want   string // of the error; empty: covered
	}{
		"the same":               {nil, of(mine), ""},
		"parsed":                 {nil, of(parsed), ""},
		"wildcard":               {nil, of(wild), ""},
		"nothing":                {nil, nil, "no TLS configuration"},
		"no certificate":         {nil, of(), "has no certificate"},
		"an empty one":           {nil, of(tls.Certificate{}), "certificate is empty"},
		"nonsense":               {nil, of(tls.Certificate{Certificate: [][]byte{{1}}}), "the configuration's certificate: x509"},
		"another name":           {nil, of(other), "valid for other.test, not " + testName},
		"one of several":         {nil, of(other, mine), ""},
		"none of several":        {nil, of(other, other), "valid for other.test, not " + testName},
		"no SNI":                 {func(s *State) { s.ServerName = "" }, of(other), ""},
		"no SNI, no certificate": {func(s *State) { s.ServerName = "" }, of(), "has no certificate"},
		"by name":                {nil, &tls.Config{Certificates: []tls.Certificate{other, other}, NameToCertificate: map[string]*tls.Certificate{testName: &mine}}, ""},
		"by name, in capitals":   {func(s *State) { s.ServerName = strings.ToUpper(testName) }, &tls.Config{Certificates: []tls.Certificate{other, other}, NameToCertificate: map[string]*tls.Certificate{testName: &mine}}, ""},
		"by wildcard":            {nil, &tls.Config{Certificates: []tls.Certificate{other, other}, NameToCertificate: map[string]*tls.Certificate{"*.example.test": &mine}}, ""},
		"a wrong one by name":    {nil, &tls.Config{Certificates: []tls.Certificate{mine, mine}, NameToCertificate: map[string]*tls.Certificate{testName: &other}}, "valid for other.test"},
		"none by name":           {nil, &tls.Config{Certificates: []tls.Certificate{mine, mine}, NameToCertificate: map[string]*tls.Certificate{testName: nil}}, "certificate is nil"},
		"GetCertificate":         {nil, &tls.Config{GetCertificate: get(&mine, nil)}, ""},
		"another one":            {nil, &tls.Config{GetCertificate: get(&other, nil), Certificates: []tls.Certificate{mine}}, "valid for other.test"},
		"it has none":            {nil, &tls.Config{GetCertificate: get(nil, nil), Certificates: []tls.Certificate{mine}}, ""},
		"it has none at all":     {nil, &tls.Config{GetCertificate: get(nil, nil)}, "has no certificate"},
		"it fails":               {nil, &tls.Config{GetCertificate: get(nil, wrong), Certificates: []tls.Certificate{mine}}, "GetCertificate: no such name"},
		"it is not asked":        {func(s *State) { s.ServerName = "" }, &tls.Config{GetCertificate: get(nil, wrong), Certificates: []tls.Certificate{mine}}, ""},
		"it panics":              {nil, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("oh") }}, "panics: oh"},
		"GetConfigForClient":     {nil, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return of(mine), nil }}, ""},
		"with another":           {nil, &tls.Config{Certificates: []tls.Certificate{mine}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return of(other), nil }}, "valid for other.test"},
		"with none":              {nil, &tls.Config{Certificates: []tls.Certificate{mine}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }}, ""},
		"which refuses":          {nil, &tls.Config{Certificates: []tls.Certificate{mine}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, wrong }}, "GetConfigForClient: no such name"},
		"with a stricter one": {nil, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{mine}, ClientAuth: tls.RequireAnyClientCert}, nil
		}}, "requires one"},
		"TLS 1.2":                 {nil, &tls.Config{Certificates: []tls.Certificate{mine}, MaxVersion: tls.VersionTLS12}, "MaxVersion is TLS 1.2"},
		"TLS 1.3":                 {nil, &tls.Config{Certificates: []tls.Certificate{mine}, MaxVersion: tls.VersionTLS13}, ""},
		"HTTP/1 and 2":            {nil, &tls.Config{Certificates: []tls.Certificate{mine}, NextProtos: []string{"h2", protoHTTP1}}, ""},
		"HTTP/2":                  {nil, &tls.Config{Certificates: []tls.Certificate{mine}, NextProtos: []string{"h2"}}, "it speaks http/1.1"},
		"HTTP/2, and no protocol": {func(s *State) { s.ALPN = "" }, &tls.Config{Certificates: []tls.Certificate{mine}, NextProtos: []string{"h2"}}, ""},
		"VerifyConnection":        {nil, &tls.Config{Certificates: []tls.Certificate{mine}, VerifyConnection: func(tls.ConnectionState) error { return wrong }}, "VerifyConnection: no such name"},
		"a bad state":             {func(s *State) { s.ALPN = "h2" }, of(mine), `protocol "h2"`},
		"a bad certificate":       {func(s *State) { s.Certificates = [][]byte{{1}} }, of(mine), "client certificate 0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := plainState()
			if c.state != nil {
				c.state(&s)
			}
			cs, err := Covers(context.Background(), conn, &s, c.config)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want == "":
				if want, _ := s.ConnectionState(); cs.ServerName != want.ServerName || cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete {
					t.Errorf("%+v", cs)
				}
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("error %v, want one with %q", err, c.want)
			case !reflect.DeepEqual(cs.PeerCertificates, []*x509.Certificate(nil)):
				t.Errorf("an error, and %v", cs)
			}
			if conn.in.Len()+conn.out.Len() > 0 {
				t.Error("the connection was used")
			}
		})
	}
}

// TestCoversTellsTheFunctions what is known of the connection.
func TestCoversTellsTheFunctions(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(context.Background(), key{}, "value")
	conn := &script{}
	s := plainState()
	s.ServerName = "www.example.test"
	asked := 0
	look := func(h *tls.ClientHelloInfo) {
		asked++
		if h.ServerName != s.ServerName || h.Conn != conn || h.Context().Value(key{}) != "value" || len(h.SignatureSchemes) == 0 ||
			!reflect.DeepEqual(h.SupportedProtos, []string{protoHTTP1}) || !reflect.DeepEqual(h.SupportedVersions, []uint16{tls.VersionTLS13}) ||
			!reflect.DeepEqual(h.CipherSuites, []uint16{s.Suite}) || !reflect.DeepEqual(h.SupportedCurves, []tls.CurveID{s.Curve}) {
			t.Errorf("asked with %+v", h)
		}
		cert := worldCert()
		if err := h.SupportsCertificate(&cert); err != nil {
			t.Error(err)
		}
	}
	config := &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			look(h)
			return &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
				look(h)
				cert := worldCert()
				return &cert, nil
			}}, nil
		},
	}
	_, err := Covers(ctx, conn, &s, config)
	check(t, err)
	if asked != 2 {
		t.Errorf("the functions were called %d times", asked)
	}
	// One that blocks is ended by the context.
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		<-h.Context().Done()
		return nil, h.Context().Err()
	}
	if _, err := Covers(ctx, conn, &s, config); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v", err)
	}
}

func TestCoversVerifiesClients(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	client := ours.issue(t)
	server := worldCert()
	s := plainState()
	s.Certificates = client.Certificate
	serverOnly := plainState()
	serverOnly.Certificates = ours.issue(t, "a.server").Certificate
	none := plainState()
	fine := errors.New("fine")
	for name, c := range map[string]struct {
		state  State
		config *tls.Config
		want   string
		chains int
	}{
		"verified":            {s, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool}, "", 1},
		"verified if given":   {s, &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ours.pool}, "", 1},
		"by others":           {s, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: theirs.pool}, "unknown authority", 0},
		"by others, if given": {s, &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: theirs.pool}, "unknown authority", 0},
		"expired": {s, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool, Time: func() time.Time {
			return time.Now().Add(48 * time.Hour)
		}}, "expired", 0},
		"a server's":           {serverOnly, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool}, "incompatible key usage", 0},
		"any":                  {s, &tls.Config{ClientAuth: tls.RequireAnyClientCert, ClientCAs: theirs.pool}, "", 0},
		"requested":            {s, &tls.Config{ClientAuth: tls.RequestClientCert}, "", 0},
		"not asked for":        {s, &tls.Config{ClientAuth: tls.NoClientCert}, "asks for none", 0},
		"none":                 {none, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool}, "requires one", 0},
		"none at all":          {none, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, "requires one", 0},
		"none, which is fine":  {none, &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ours.pool}, "", 0},
		"own check":            {s, &tls.Config{ClientAuth: tls.RequireAnyClientCert, VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return fine }}, "VerifyPeerCertificate: fine", 0},
		"own check, not asked": {none, &tls.Config{VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return fine }}, "", 0},
		"own check sees all": {s, &tls.Config{
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool,
			VerifyPeerCertificate: func(raw [][]byte, chains [][]*x509.Certificate) error {
				if len(raw) != 1 || !bytes.Equal(raw[0], client.Certificate[0]) || len(chains) != 1 {
					return errors.New("not all")
				}
				return nil
			},
			VerifyConnection: func(cs tls.ConnectionState) error {
				if len(cs.PeerCertificates) != 1 || len(cs.VerifiedChains) != 1 || cs.ServerName != testName {
					return errors.New("not all")
				}
				return nil
			},
		}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			c.config.Certificates = []tls.Certificate{server}
			cs, err := Covers(context.Background(), &script{}, &c.state, c.config)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if len(cs.VerifiedChains) != c.chains {
				t.Errorf("%d chains, want %d", len(cs.VerifiedChains), c.chains)
			}
			if err == nil && len(cs.PeerCertificates) != len(c.state.Certificates) {
				t.Errorf("%d certificates of %d", len(cs.PeerCertificates), len(c.state.Certificates))
			}
		})
	}
}

// TestClientCertificateGoesOver with a connection, and with one that was resumed.
func TestClientCertificateGoesOver(t *testing.T) {
	ca := newAuthority(t, "clients")
	serverConf, clientConf := serverConfig(), clientConfig()
	serverConf.ClientAuth, serverConf.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
	clientConf.Certificates = []tls.Certificate{ca.issue(t)}
	clientConf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for _, resumed := range []bool{false, true} {
		p := connect(t, clientConf, serverConf)
		talk(t, p.client, p.server) // the client reads its ticket
		was := p.server.ConnectionState()
		s := p.extract(t)
		s = across(t, &s)
		cs, err := Covers(context.Background(), p.below, &s, serverConf)
		check(t, err)
		c := get(New(p.below, &s, cs))(t)
		talk(t, p.client, c)
		is := again(t, c).ConnectionState()
		if was.DidResume != resumed || is.DidResume != resumed || len(is.PeerCertificates) != 1 || !is.PeerCertificates[0].Equal(was.PeerCertificates[0]) ||
			len(cs.VerifiedChains) != 1 || is.VerifiedChains != nil {
			t.Errorf("resumed %v: it was %+v, is %+v", resumed, was, is)
		}
	}
}
