// Package testing has a stand-in for tableflip's Upgrader that upgrades nothing:
// for tests of programs, and for Windows, where tableflip.New returns
// ErrNotSupported.
package testing

import (
	"context"
	"net"
	"os"

	"github.com/julofinance/grace/v3/compat/tableflip"
)

// An Upgrader has the methods of a tableflip.Upgrader, and does nothing.
type Upgrader struct {
	*Fds
}

// New gives an Upgrader. It may be called any number of times.
func New() (*Upgrader, error) { return &Upgrader{&Fds{}}, nil }

// Ready returns nil.
func (u *Upgrader) Ready() error { return nil }

// Exit gives a channel that is never closed: nil.
func (u *Upgrader) Exit() <-chan struct{} { return nil }

// Stop does nothing.
func (u *Upgrader) Stop() {}

// WaitForParent returns nil at once: there is no old process.
func (u *Upgrader) WaitForParent(ctx context.Context) error { return nil }

// HasParent reports false.
func (u *Upgrader) HasParent() bool { return false }

// Upgrade returns [tableflip.ErrNotSupported].
func (u *Upgrader) Upgrade() error { return tableflip.ErrNotSupported }

// Fds has nothing that was inherited, and keeps nothing.
type Fds struct{}

// Listen is [net.Listen].
func (f *Fds) Listen(network, addr string) (net.Listener, error) { return net.Listen(network, addr) }

// Listener gives nil.
func (f *Fds) Listener(network, addr string) (net.Listener, error) { return nil, nil }

// AddListener does nothing.
func (f *Fds) AddListener(network, addr string, ln net.Listener) error { return nil }

// Conn gives nil.
func (f *Fds) Conn(network, addr string) (net.Conn, error) { return nil, nil }

// AddConn does nothing.
func (f *Fds) AddConn(network, addr string, conn net.Conn) error { return nil }

// File gives nil.
func (f *Fds) File(name string) (*os.File, error) { return nil, nil }

// AddFile does nothing.
func (f *Fds) AddFile(name string, file *os.File) error { return nil }
