//go:build unix

package serve

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"runtime"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
)

// The certificate may be another one, as long as it has the same names.
func TestTicketsAreBoundToNames(t *testing.T) {
	server := func(names ...string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{tlstest.Issue(t, x509.Certificate{DNSNames: names}, nil)}}
	}
	unparsed := server("b.test", "a.test", "a.test")
	unparsed.Certificates[0].Leaf = nil
	versions(t, func(t *testing.T, version uint16) {
		for _, c := range []struct {
			name string
			next *tls.Config
			want bool
		}{
			{"the same names", unparsed, true},
			{"a name less", server("a.test"), false},
			{"other names", server("a.test", "c.test"), false},
		} {
			client := returning(&tls.Config{InsecureSkipVerify: true}, version)
			p := newTicketed(t, server("a.test", "b.test"), "")
			resumes(t, p.config, client)
			if got := resumes(t, newTicketed(t, c.next, p.handOver()).config, client); got != c.want {
				t.Errorf("%s: the session is resumed: %v, want %v", c.name, got, c.want)
			}
		}
	})
}

// Where a ticket could stand for a client certificate that is not verified any more, no
// secret goes over.
func TestTicketsAndClientCertificates(t *testing.T) {
	verify := func([][]byte, [][]*x509.Certificate) error { return nil }
	choose := func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }
	for _, c := range []struct {
		name      string
		config    *tls.Config
		old, new_ bool
	}{
		{"none", &tls.Config{}, true, true},
		{"of a server, when it is a client", &tls.Config{VerifyPeerCertificate: verify}, true, true},
		{"asked for", &tls.Config{ClientAuth: tls.RequestClientCert}, false, true},
		{"verified", &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}, false, true},
		{"verified by the program", &tls.Config{ClientAuth: tls.RequireAnyClientCert, VerifyPeerCertificate: verify}, false, false},
		{"not known", &tls.Config{GetConfigForClient: choose}, false, true},
		{"not known, verified by the program", &tls.Config{GetConfigForClient: choose, VerifyPeerCertificate: verify}, false, false},
	} {
		if got := mayResume(c.config, "go1.25.6"); got != c.old {
			t.Errorf("%s, Go 1.25.6: %v, want %v", c.name, got, c.old)
		}
		if got := mayResume(c.config, "go1.25.7"); got != c.new_ {
			t.Errorf("%s, Go 1.25.7: %v, want %v", c.name, got, c.new_)
		}
	}
	for v, want := range map[string]bool{
		"go1.25": false, "go1.25.0": false, "go1.25.7": true, "go1.25.10": true, "go1.26.0": true, "go1.26.8 X:jsonv2": true, "go1.27.3": true, "go2.0": true,
		"": false, "devel go1.28-0123456 Mon Jan 2 2026": false, "go1.25.3 (vendor)": false, "go": false,
	} {
		if got := verifiesAgain(v); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

// What verifiesAgain says is true of this version of Go. And what follows: a new version
// that trusts other clients never takes over what the old one has believed.
func TestNewVersionTrustsOtherClients(t *testing.T) {
	authority := func(name string) (tls.Certificate, *x509.CertPool) {
		ca := tlstest.Issue(t, x509.Certificate{IsCA: true, Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageCertSign}, nil)
		pool := x509.NewCertPool()
		pool.AddCert(ca.Leaf)
		return ca, pool
	}
	ca, trusted := authority("before")
	_, others := authority("after")
	cert, trust := tlstest.Certificate(t)
	server := func(pool *x509.CertPool) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	}
	versions(t, func(t *testing.T, version uint16) {
		client := returning(trust, version)
		// Certificates would not do: the client sends none if it is not asked for this issuer.
		client.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := tlstest.Issue(t, x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, &ca)
			if r.SupportsCertificate(&c) != nil {
				return &tls.Certificate{}, nil
			}
			return &c, nil
		}
		keyed := func(c *tls.Config) *tls.Config { c.SetSessionTicketKeys([][32]byte{{1}}); return c }
		resumes(t, keyed(server(trusted)), client)
		if got, want := resumes(t, keyed(server(others)), client), !verifiesAgain(runtime.Version()); got != want {
			t.Errorf("%s resumes a session of a client that is not trusted any more: %v, want %v", runtime.Version(), got, want)
		}
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		p := newTicketed(t, server(trusted), "")
		resumes(t, p.config, client)
		if resumes(t, newTicketed(t, server(others), p.handOver()).config, client) {
			t.Error("the new version resumes a session of a client that it does not trust")
		}
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		resumes(t, p.config, client)
		if got, want := resumes(t, newTicketed(t, server(trusted), p.handOver()).config, client), verifiesAgain(runtime.Version()); got != want {
			t.Errorf("the new version resumes a session of a client that it trusts: %v, want %v", got, want)
		}
	})
}
