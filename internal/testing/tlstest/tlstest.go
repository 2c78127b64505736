// Package tlstest has what tests of several packages need of TLS.
package tlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificate gives a certificate for 127.0.0.1, and the configuration of a client that
// trusts it.
func Certificate(t testing.TB) (tls.Certificate, *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0], s.Client().Transport.(*http.Transport).TLSClientConfig
}

// Local is the template of a certificate for 127.0.0.1, and for the name grace, that
// clients can trust.
func Local() x509.Certificate {
	return x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"grace"}, IsCA: true}
}

// Issue gives a certificate, signed by parent or else by itself, with a new key. It is
// valid for a day.
func Issue(t testing.TB, template x509.Certificate, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.BasicConstraintsValid = big.NewInt(1), true
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	c := tls.Certificate{PrivateKey: key}
	issuer := &tls.Certificate{PrivateKey: key, Leaf: &template}
	if parent != nil {
		issuer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, issuer.Leaf, &key.PublicKey, issuer.PrivateKey)
	if err == nil {
		c.Certificate = [][]byte{der}
		c.Leaf, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// PEM encodes a certificate, and its key.
func PEM(t testing.TB, c tls.Certificate) (cert, key []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// File gives the path of a file with a certificate for 127.0.0.1 and its key.
func File(t testing.TB) string {
	t.Helper()
	cert, key := PEM(t, Issue(t, Local(), nil))
	path := filepath.Join(t.TempDir(), "cert.pem")
	write(t, path, append(cert, key...))
	return path
}

// Files writes cert.pem and key.pem, for 127.0.0.1, to dir. It gives what a client
// trusts.
func Files(t testing.TB, dir string) *x509.CertPool {
	t.Helper()
	c := Issue(t, Local(), nil)
	cert, key := PEM(t, c)
	write(t, filepath.Join(dir, "cert.pem"), cert)
	write(t, filepath.Join(dir, "key.pem"), key)
	roots := x509.NewCertPool()
	roots.AddCert(c.Leaf)
	return roots
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
