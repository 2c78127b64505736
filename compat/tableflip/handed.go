package tableflip

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/julofinance/grace/v3"
)

// How what Fds holds goes from process to process: listeners that Listen has opened
// as grace's own; files under the names that the program gives them; the rest as
// grace's files and connections, under names that say what they are.

const (
	listenerKind = "listener"
	packetKind   = "packet"
	connKind     = "conn"
	fileKind     = "file"
)

// keyPrefix begins the names that are not the program's own.
const keyPrefix = "tableflip "

// A key is what something is asked for by. A file has no network.
type key struct{ kind, network, addr string }

// name is how grace knows it.
func (k key) name() string {
	if k.kind == fileKind {
		return k.addr
	}
	return keyPrefix + k.kind + " " + k.network + " " + k.addr
}

func parseKey(name string) (k key, ok bool) {
	rest, ok := strings.CutPrefix(name, keyPrefix)
	parts := strings.SplitN(rest, " ", 3)
	if !ok || len(parts) != 3 {
		return key{}, false
	}
	return key{parts[0], parts[1], parts[2]}, true
}

// path is that of a unix socket's file, which net leaves to us, or "".
func (k key) path() string {
	isUnix := k.kind == listenerKind && (k.network == "unix" || k.network == "unixpacket") || k.kind == packetKind && k.network == "unixgram"
	if !isUnix || k.addr == "" || runtime.GOOS == "linux" && k.addr[0] == '@' {
		return ""
	}
	return k.addr
}

// listen opens a listener, or takes grace's. f.mu is held, as for all below.
func (f *Fds) listen(network, addr string) (net.Listener, error) {
	ln, err := f.u.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	l, err := newListener(ln)
	if err != nil {
		return nil, err
	}
	f.listeners[key{listenerKind, network, addr}] = l
	return l, nil
}

func (f *Fds) inheritedListener(network, addr string) (net.Listener, error) {
	if ln, err := f.addedListener(network, addr); ln != nil || err != nil {
		return ln, err
	}
	if !slices.Contains(f.u.Inherited(), grace.Inherited{Kind: "listener", Network: network, Addr: addr}) {
		return nil, nil
	}
	return f.listen(network, addr)
}

// addedListener gives one that the old process had from AddListener.
func (f *Fds) addedListener(network, addr string) (net.Listener, error) {
	file, err := f.inheritedFile(key{listenerKind, network, addr})
	if file == nil || err != nil {
		return nil, err
	}
	defer file.Close()
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("tableflip: can't inherit listener %s %s: %w", network, addr, err)
	}
	return ln, nil
}

func (f *Fds) addListener(network, addr string, ln Listener) error {
	if u, ok := ln.(interface{ SetUnlinkOnClose(bool) }); ok {
		u.SetUnlinkOnClose(false) // the path outlives this process
	}
	k := key{listenerKind, network, addr}
	if err := f.addFile(k, ln); err != nil {
		return err
	}
	if l := f.listeners[k]; l != nil {
		delete(f.listeners, k)
		l.socketListener.Close()
	}
	return nil
}

func (f *Fds) openPacket(network, addr string) (net.PacketConn, error) {
	return f.lc.ListenPacket(context.Background(), network, addr)
}

func (f *Fds) inheritedPacketConn(network, addr string) (net.PacketConn, error) {
	file, err := f.inheritedConn(key{packetKind, network, addr})
	if file == nil || err != nil {
		return nil, err
	}
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("tableflip: can't inherit packet conn %s %s: %w", network, addr, err)
	}
	return conn, nil
}

// inheritedConn gives a descriptor of the connection, another one than ours.
func (f *Fds) inheritedConn(k key) (*os.File, error) {
	conn, err := f.u.Conn(k.name())
	if conn == nil || err != nil {
		return nil, err
	}
	f.added[k] = conn
	return dup(conn.(syscall.Conn), k.name())
}

func (f *Fds) addConn(k key, conn syscall.Conn) error {
	file, err := dup(conn, k.name())
	if err != nil {
		return fmt.Errorf("tableflip: can't add %s %s %s: %w", k.kind, k.network, k.addr, err)
	}
	defer file.Close()
	ours, err := net.FileConn(file)
	if err != nil {
		return fmt.Errorf("tableflip: can't add %s %s %s: %w", k.kind, k.network, k.addr, err)
	}
	return f.keep(k, ours, f.u.AddConn(k.name(), ours))
}

// inheritedFile gives a descriptor of the file, another one than ours.
func (f *Fds) inheritedFile(k key) (*os.File, error) {
	file, err := f.u.File(k.name())
	if file == nil || err != nil {
		return nil, err
	}
	f.added[k] = file
	return dup(file, k.name())
}

func (f *Fds) addFile(k key, file syscall.Conn) error {
	ours, err := dup(file, k.name())
	if err != nil {
		return fmt.Errorf("tableflip: can't add %s %s: %w", k.kind, k.addr, err)
	}
	return f.keep(k, ours, f.u.AddFile(k.name(), ours))
}

// keep has ours until the end, in place of one before, unless adding it has failed.
func (f *Fds) keep(k key, ours io.Closer, err error) error {
	if err != nil {
		ours.Close()
		return err
	}
	if before := f.added[k]; before != nil {
		before.Close()
	}
	f.added[k] = ours
	return nil
}

// unusedPaths are those of unix sockets that the old process had and this one does
// not ask for.
func (f *Fds) unusedPaths() (paths []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, in := range f.u.Inherited() {
		if k, ok := parseKey(in.Addr); ok && f.added[k] == nil && k.path() != "" {
			paths = append(paths, k.path())
		}
	}
	return paths
}

// stop lets listeners that the program has closed end: nothing takes them over.
func (f *Fds) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.listeners {
		l.settle(true)
	}
}

// end closes what is ours. last: no process has the unix sockets after this one.
func (f *Fds) end(last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, c := range f.added {
		if path := k.path(); path != "" && last {
			removeSockets([]string{path})
		}
		c.Close()
	}
	clear(f.added)
}

// removeSockets removes those of the paths that are sockets.
func removeSockets(paths []string) {
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
			os.Remove(path)
		}
	}
}
