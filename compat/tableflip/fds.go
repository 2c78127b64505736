package tableflip

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/julofinance/grace/v3"
)

// A Listener can be handed over to a new process.
type Listener interface {
	net.Listener
	syscall.Conn
}

// A PacketConn can be handed over to a new process.
type PacketConn interface {
	net.PacketConn
	syscall.Conn
}

// A Conn can be handed over to a new process.
type Conn interface {
	net.Conn
	syscall.Conn
}

// Fds are the sockets and files of a process: those that the old process has
// handed over, and those that go to the next one. They go by the network and the
// address, or the name, that the program gives, letter by letter. All methods may
// be called from several goroutines at once.
//
// What the program passes to an Add method, and what it is given, is its own to
// close: the Upgrader has another descriptor of the same socket or file, and hands
// that over. A second one of the same kind and name takes the place of the first.
type Fds struct {
	u  *grace.Upgrader
	lc net.ListenConfig

	mu        sync.Mutex // guards the following
	listeners map[key]*listener
	added     map[key]io.Closer // our own descriptors
}

func newFds(u *grace.Upgrader, lc *net.ListenConfig) *Fds {
	f := &Fds{u: u, listeners: map[key]*listener{}, added: map[key]io.Closer{}}
	if lc != nil {
		f.lc = *lc
	}
	return f
}

// Listen gives the listener of that name that was handed over, or opens one.
func (f *Fds) Listen(network, addr string) (net.Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ln, err := f.addedListener(network, addr); ln != nil || err != nil {
		return ln, err
	}
	return f.listen(network, addr)
}

// ListenWithCallback gives the listener of that name that was handed over, or what
// the callback opens, which must be a [Listener]. The callback must not use f.
func (f *Fds) ListenWithCallback(network, addr string, callback func(network, addr string) (net.Listener, error)) (net.Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ln, err := f.inheritedListener(network, addr); ln != nil || err != nil {
		return ln, err
	}
	ln, err := callback(network, addr)
	if err != nil {
		return nil, fmt.Errorf("tableflip: can't create new listener: %w", err)
	}
	shared, ok := ln.(Listener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("tableflip: %T doesn't implement tableflip.Listener", ln)
	}
	if err := f.addListener(network, addr, shared); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// Listener gives the listener of that name that was handed over, or nil.
func (f *Fds) Listener(network, addr string) (net.Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inheritedListener(network, addr)
}

// AddListener hands ln over at each upgrade. Of a unix socket's path the Upgrader
// takes care from here on, as of those that it has opened.
func (f *Fds) AddListener(network, addr string, ln Listener) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addListener(network, addr, ln)
}

// ListenPacket gives the packet conn of that name that was handed over, or opens one.
func (f *Fds) ListenPacket(network, addr string) (net.PacketConn, error) {
	return f.ListenPacketWithCallback(network, addr, f.openPacket)
}

// ListenPacketWithCallback gives the packet conn of that name that was handed over,
// or what the callback opens, which must be a [PacketConn]. The callback must not
// use f.
func (f *Fds) ListenPacketWithCallback(network, addr string, callback func(network, addr string) (net.PacketConn, error)) (net.PacketConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if conn, err := f.inheritedPacketConn(network, addr); conn != nil || err != nil {
		return conn, err
	}
	conn, err := callback(network, addr)
	if err != nil {
		return nil, fmt.Errorf("tableflip: can't create new packet conn: %w", err)
	}
	shared, ok := conn.(PacketConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("tableflip: %T doesn't implement tableflip.PacketConn", conn)
	}
	if err := f.addConn(key{packetKind, network, addr}, shared); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// PacketConn gives the packet conn of that name that was handed over, or nil.
func (f *Fds) PacketConn(network, addr string) (net.PacketConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inheritedPacketConn(network, addr)
}

// AddPacketConn hands conn over at each upgrade.
func (f *Fds) AddPacketConn(network, addr string, conn PacketConn) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addConn(key{packetKind, network, addr}, conn)
}

// Conn gives the connection of that name that was handed over, or nil.
func (f *Fds) Conn(network, addr string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := f.inheritedConn(key{connKind, network, addr})
	if file == nil || err != nil {
		return nil, err
	}
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("tableflip: can't inherit connection %s %s: %w", network, addr, err)
	}
	return conn, nil
}

// AddConn hands conn over at each upgrade.
func (f *Fds) AddConn(network, addr string, conn Conn) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addConn(key{connKind, network, addr}, conn)
}

// Files gives all files that were handed over and that nothing has asked for yet;
// they go to the next process as well. The descriptors may be blocking ones.
func (f *Fds) Files() ([]*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var files []*os.File
	for _, in := range f.u.Inherited() {
		if in.Kind != "file" || strings.HasPrefix(in.Addr, keyPrefix) {
			continue
		}
		file, err := f.inheritedFile(key{kind: fileKind, addr: in.Addr})
		if err != nil {
			return nil, err
		}
		if file != nil {
			files = append(files, file)
		}
	}
	return files, nil
}

// File gives the file of that name that was handed over, or nil. The descriptor may
// be a blocking one.
func (f *Fds) File(name string) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inheritedFile(key{kind: fileKind, addr: name})
}

// AddFile hands file over at each upgrade, under this name.
func (f *Fds) AddFile(name string, file *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addFile(key{kind: fileKind, addr: name}, file)
}
