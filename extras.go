package grace

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
)

// extras are files and connections that are handed over by name.
type extras struct {
	mu     sync.Mutex                 // guards byName
	byName map[string]*sockets.Socket // key: kind and name
}

// AddFile hands f over at each upgrade, under this name; the new process gets
// it with [Upgrader.File]. A file of the same name before is handed over no
// more; a nil f only does that. The file stays the caller's, and must stay open
// until Done; one that is closed is not handed over. Both processes then have
// the same open file: its offset and its locks are shared. The name has at most
// 4096 bytes.
func (u *Upgrader) AddFile(name string, f *os.File) error {
	if f == nil {
		u.addExtra(manifest.File, name, nil)
		return nil
	}
	return u.addConn(manifest.File, name, f)
}

// File gives the file of that name that the old process has handed over, and
// will hand it over in turn. Without such a file it is nil. A second call for
// the same name gives nil too: the file belongs to the first caller.
func (u *Upgrader) File(name string) (*os.File, error) {
	in, ok := u.socks.Claim(manifest.File, "", name)
	if !ok {
		return nil, nil
	}
	defer u.socks.Made(in)
	f := fd.NewFile(in.FD, name)
	if f == nil {
		return nil, fmt.Errorf("grace: inherited file %q: bad descriptor %d", name, in.FD)
	}
	return f, u.inheritExtra(manifest.File, name, f, in)
}

// AddConn hands the connection c over at each upgrade, under this name; the new
// process gets it with [Upgrader.Conn]. c is a TCP, UDP or unix connection, or
// another that has a descriptor. Otherwise it is as AddFile: the two processes
// must agree on which one reads when.
func (u *Upgrader) AddConn(name string, c net.Conn) error {
	if c == nil {
		u.addExtra(manifest.Conn, name, nil)
		return nil
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("grace: AddConn %q: a %T has no descriptor to hand over", name, c)
	}
	return u.addConn(manifest.Conn, name, sc)
}

// Conn gives the connection of that name that the old process has handed over;
// see [Upgrader.File].
func (u *Upgrader) Conn(name string) (net.Conn, error) {
	in, ok := u.socks.Claim(manifest.Conn, "", name)
	if !ok {
		return nil, nil
	}
	defer u.socks.Made(in)
	c, err := fd.NewConn(in.FD)
	if err != nil {
		return nil, fmt.Errorf("grace: inherited connection %q (descriptor %d): %w", name, in.FD, err)
	}
	return c, u.inheritExtra(manifest.Conn, name, c.(syscall.Conn), in)
}

// maxExtraName is what fits into a manifest whatever the name's bytes are: the
// quoted name must stay below maxPerSocket.
const maxExtraName = 4096

func (u *Upgrader) addConn(k manifest.Kind, name string, c syscall.Conn) error {
	if len(name) > maxExtraName {
		return fmt.Errorf("grace: add %s %.40q…: the name has %d bytes; no more than %d can be handed over, use a shorter one", k, name, len(name), maxExtraName)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("grace: add %s %q: %w", k, name, err)
	}
	return u.addExtra(k, name, &sockets.Socket{Entry: manifest.Entry{Kind: k, Addr: name}, Index: -1, Raw: raw})
}

func (u *Upgrader) inheritExtra(k manifest.Kind, name string, c syscall.Conn, in sockets.Inherited) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("grace: inherited %s %q: %w", k, name, err)
	}
	return u.addExtra(k, name, &sockets.Socket{Entry: in.Entry, Index: in.Index, Raw: raw})
}

func (u *Upgrader) addExtra(k manifest.Kind, name string, sock *sockets.Socket) error {
	u.extras.mu.Lock()
	defer u.extras.mu.Unlock()
	key := string(k) + " " + name
	if old := u.extras.byName[key]; old != nil {
		u.socks.Remove(old)
		delete(u.extras.byName, key)
	}
	if sock == nil {
		return nil
	}
	if u.extras.byName == nil {
		u.extras.byName = map[string]*sockets.Socket{}
	}
	u.extras.byName[key] = sock
	return u.socks.Add(sock)
}
