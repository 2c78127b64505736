//go:build !unix

package sockets

import (
	"context"
	"errors"
	"net"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
)

// Where sockets can't be handed over they are plain ones of package net.

func fileID(string) (dev, ino uint64, err error) { return 0, 0, errors.ErrUnsupported }

// readable: the queue can't be looked at, so it counts as empty.
func readable(*Socket) bool { return false }

func describe(k manifest.Kind, network, addr string, _ any) manifest.Entry {
	return manifest.Entry{Kind: k, Network: network, Addr: addr}
}

func openPath[T any](_, _ string, open func() (T, error)) (T, error) { return open() }

func sayWho(*Socket) {}

type socketFile struct{}

func (sock *Socket) lost() bool       { return false }
func (sock *Socket) look()            {}
func (sock *Socket) refile()          {}
func (sock *Socket) hide()            {}
func (sock *Socket) show()            {}
func (sock *Socket) unlink()          {}
func (sock *Socket) forget()          {}
func (sock *Socket) listens() bool    { return true }
func (sock *Socket) isShutDown() bool { return false }
func (sock *Socket) listenNow() error { return nil }

func openLate(lc net.ListenConfig, network, addr string) (fd.Listener, net.Listener, error) {
	l, err := lc.Listen(context.Background(), network, addr)
	return nil, l, err
}
