package tls13

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"
)

// SelfCheck reports why no connection may be extracted in this process: it takes one of
// its own through all of it, in memory, the first time that it is called. A crypto/tls
// that keeps its state in another way than this package believes is found here, and not
// on a connection of a client. It takes a few milliseconds.
//
// Where the processor has no instructions for AES, two ends in Go choose ChaCha20, so
// that the check fails and nothing moves.
var SelfCheck = sync.OnceValue(func() error { return selfCheck(Extract) })

// checkPatience bounds the check, should an end of its connection wait for the other.
const checkPatience = 10 * time.Second

func selfCheck(extract func(*tls.Conn) (State, error)) (err error) {
	defer func() {
		if p := recover(); p != nil { // of reflect, in a version of Go to come
			err = fmt.Errorf("%w: panic: %v", ErrUnknown, p)
		}
		if err != nil {
			err = fmt.Errorf("tls13: the check of this process's crypto/tls has failed, TLS connections are not moved: %w", err)
		}
	}()
	if err := allowed(); err != nil {
		return err
	}
	if _, err := tlsLayout(); err != nil {
		return err
	}
	cert, err := checkCertificate()
	if err != nil {
		return err
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	deadline := time.Now().Add(checkPatience)
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)

	var keyLog bytes.Buffer
	server := tls.Server(near, &tls.Config{
		Certificates: []tls.Certificate{cert}, NextProtos: []string{protoHTTP1}, MinVersion: tls.VersionTLS13,
		KeyLogWriter: &keyLog, SessionTicketsDisabled: true,
	})
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	client := tls.Client(far, &tls.Config{RootCAs: roots, ServerName: checkName, NextProtos: []string{protoHTTP1}, MinVersion: tls.VersionTLS13})
	echoed := make(chan error, 1)
	go func() {
		_, err := io.Copy(client, client)
		echoed <- err
	}()
	// One record each way, so that no sequence number is zero.
	if err := echo(server); err != nil {
		return fmt.Errorf("crypto/tls: %w", err)
	}
	s, err := extract(server)
	if err != nil {
		return err
	}
	defer s.Wipe()
	for _, h := range []struct {
		label string
		half  Half
	}{{"CLIENT_TRAFFIC_SECRET_0", s.In}, {"SERVER_TRAFFIC_SECRET_0", s.Out}} {
		if !logged(&keyLog, h.label, h.half.Secret) {
			return fmt.Errorf("%w: the secret that was read is not %s", ErrUnknown, h.label)
		}
		if h.half.Seq != 1 {
			return fmt.Errorf("%w: after one record the sequence number of %s is %d", ErrUnknown, h.label, h.half.Seq)
		}
	}
	c, err := transplant(near, &s)
	if err != nil {
		return err
	}
	if err := echo(c); err != nil {
		return fmt.Errorf("the first record: %w", err)
	}
	// The client answers with new keys of its own.
	if err := errors.Join(c.updateKeys(true), echo(c)); err != nil {
		return fmt.Errorf("a key update: %w", err)
	}
	if c.in.seq != 1 || c.out.seq != 1 {
		return fmt.Errorf("after a key update the next records are %d and %d, not 1", c.in.seq, c.out.seq)
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("close_notify: %w", err)
	}
	if err := <-echoed; err != nil {
		return fmt.Errorf("close_notify as the client saw it: %w", err)
	}
	return nil
}

// transplant makes a Conn of s as another process would.
func transplant(conn net.Conn, s *State) (*Conn, error) {
	b, err := s.Encode()
	if err != nil {
		return nil, err
	}
	defer clear(b)
	over, err := Decode(b)
	if err != nil {
		return nil, err
	}
	cs, err := over.ConnectionState()
	if err != nil {
		return nil, err
	}
	if _, err := cs.ExportKeyingMaterial("label", nil, 16); err == nil {
		return nil, fmt.Errorf("%w: keying material was exported without its secret", ErrUnknown)
	}
	return New(conn, &over, cs)
}

// echo sends a line through c and waits for it to come back.
func echo(c net.Conn) error {
	line := []byte("ping\n")
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(line)
		sent <- err
	}()
	back := make([]byte, len(line))
	_, err := io.ReadFull(c, back)
	if err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	if !bytes.Equal(back, line) {
		return fmt.Errorf("%q was sent, %q came back", line, back)
	}
	return nil
}

// logged reports whether the secret stands in a log of keys behind this label.
func logged(log *bytes.Buffer, label string, secret []byte) bool {
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == label && f[2] == hex.EncodeToString(secret) {
			return true
		}
	}
	return false
}

const checkName = "check.invalid"

// checkCertificate makes a certificate for checkName, signed by itself.
func checkCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{checkName}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
