package tls13

import (
	"context"
	"crypto/tls"
	"io"
	"testing"
)

// TestOrder is the order in which two processes are to call this package: see
// internal/sockets/tlsconn.go. The new process refuses first, and takes the connection then.
func TestOrder(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	check(t, SelfCheck())
	talk(t, p.client, p.server)

	// The old process.
	s := get(Extract(p.server))(t)
	p.fence.shut.Store(true)
	message := get(s.Encode())(t)

	// The new process, which serves another name.
	over := get(Decode(message))(t)
	other := world().issue(t, "other.test")
	if _, err := Covers(context.Background(), p.below, &over, &tls.Config{Certificates: []tls.Certificate{other}}); err == nil {
		t.Error("a server of another name takes the connection")
	}
	over.Wipe()

	// The old one serves it on, until the next upgrade.
	clear(message)
	kept := get(New(p.below, &s, p.server.ConnectionState()))(t)
	talk(t, p.client, kept)
	s = get(kept.Extract())(t)
	message = get(s.Encode())(t)

	// The new process, which serves this name.
	over = get(Decode(message))(t)
	clear(message)
	cs, err := Covers(context.Background(), p.below, &over, serverConfig())
	check(t, err)
	s.Wipe() // the old process gives its verdict
	conn := get(New(p.below, &over, cs))(t)
	talk(t, p.client, conn)
	check(t, conn.Close())
	if _, err := p.client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client sees %v", err)
	}
}
