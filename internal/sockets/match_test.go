//go:build unix

package sockets

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A host name is resolved for the goroutine that asked, and no other waits for it.
func TestHostNameIsResolvedOutsideOfTheLock(t *testing.T) {
	asked, answer := make(chan struct{}, 9), make(chan struct{})
	was := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		asked <- struct{}{}
		<-answer
		return nil, errors.New("no name server in this test")
	}}
	defer func() { net.DefaultResolver = was }()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s := New(&manifest.Manifest{Sockets: []manifest.Entry{{Kind: manifest.Listener, Network: "tcp", Addr: ":0", Bound: l.Addr().String()}}}, 1000)
	named := make(chan error, 1)
	go func() {
		_, err := s.Listen(net.ListenConfig{}, "tcp", "www.example.org:"+port)
		named <- err
	}()
	wait.For(t, asked, "the question for a name")
	other := make(chan error, 1)
	go func() {
		l, err := s.Listen(net.ListenConfig{}, "tcp4", "127.0.0.1:0")
		if err == nil {
			err = l.Close()
		}
		other <- err
	}()
	if err := wait.For(t, other, "a Listen that needs no resolver"); err != nil {
		t.Error(err)
	}
	close(answer)
	if err := wait.For(t, named, "the Listen of a name"); err == nil {
		t.Error("a name that does not resolve was listened on")
	}
}
