//go:build unix

package sockets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// The files of unix sockets. Only two are ever removed: our own, which our open
// socket keeps from being mistaken for another (its inode is not given away), and
// one that no process has bound.

func fileID(path string) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, 0, err
	}
	return uint64(st.Dev), uint64(st.Ino), nil
}

// openPath opens a unix socket. If its path is taken and no process has a socket
// bound there, a crash has left it behind and it is removed. A file beside it is
// locked from before the bind until the socket answers: of two processes that
// start at once only one removes and binds, and the other finds a socket that
// answers.
func openPath[T any](path, network string, open func() (T, error)) (T, error) {
	var none T
	unlock, lockErr := lockBeside(path)
	if lockErr == nil {
		defer unlock()
	}
	s, inUse := open()
	if !errors.Is(inUse, unix.EADDRINUSE) {
		return s, inUse
	}
	if lockErr != nil {
		return none, fmt.Errorf("%w (and a file beside it can't be locked to see whether it is stale: %w)", inUse, lockErr)
	}
	fi, err := os.Lstat(path)
	if err == nil && fi.Mode().Type() != os.ModeSocket {
		return none, fmt.Errorf("%w: %s is not a socket; remove it, or use another path", inUse, path)
	}
	if err == nil {
		err = findStale(path, network)
	}
	if err == nil {
		err = removeFile(path, func(now os.FileInfo) bool {
			// Not another file that has got the inode number of the stale one.
			return os.SameFile(fi, now) && fi.ModTime().Equal(now.ModTime())
		})
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return none, fmt.Errorf("%w: %w", inUse, err)
	}
	return open()
}

// lockBeside locks a file beside path, which no other user can open: a file that
// every user may open, such as the directory, every user may lock.
func lockBeside(path string) (unlock func(), err error) {
	name := fd.HiddenBeside(path, "lock")
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		f, err := fd.OpenLocked(name)
		if err == nil && fd.PointsTo(name, f) {
			return func() { os.Remove(name); f.Close() }, nil
		}
		if f != nil {
			f.Close()
		}
		if err != nil && !errors.Is(err, fd.ErrLocked) || time.Now().After(end) {
			return nil, err
		}
	}
}

// findStale returns nil if no process has a socket bound to the path.
func findStale(path, network string) error {
	err := bound(path)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case err != nil && !errors.Is(err, unix.EPROTOTYPE) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("whether it is in use can't be told: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, network, path)
	switch {
	case err == nil:
		defer c.Close()
		by := ""
		if pid := fd.PeerPID(c.(*net.UnixConn)); pid > 0 {
			by = fmt.Sprintf(" (pid %d)", pid)
		}
		return fmt.Errorf("%w%s; stop it, or use another path", ErrAnswered, by)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: its socket is bound, and does not listen yet; stop it, or use another path", ErrAnswered)
	}
	return fmt.Errorf("%w; stop it, or use another path", ErrAnswered)
}

// bound connects a datagram socket to path. That gives ECONNREFUSED only where no
// socket is bound to the file at all; where one of another kind is, EPROTOTYPE
// comes first, whether it listens or not, and in whatever namespace of networks
// it is. A stream socket gives ECONNREFUSED in both cases. (unix_find_bsd in
// Linux's net/unix/af_unix.c, unp_connectat in the BSDs' uipc_usrreq.c.)
func bound(path string) error {
	syscall.ForkLock.RLock()
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(n)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(n)
	for {
		if err := unix.Connect(n, &unix.SockaddrUnix{Name: path}); err != unix.EINTR {
			return os.NewSyscallError("connect", err)
		}
	}
}

// removeFile removes path if it is the file that is meant, and not another one
// that takes its place between the look and the removal: the file gets another
// name first, is looked at there, and put back if it is not the one.
func removeFile(path string, meant func(os.FileInfo) bool) error {
	if fi, err := os.Lstat(path); err != nil {
		return err
	} else if !meant(fi) {
		return fmt.Errorf("%s is another file by now", path)
	}
	aboutToMove(path)
	aside := beside(path, fmt.Sprint("-", os.Getpid()))
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	if fi, err := os.Lstat(aside); err != nil || !meant(fi) {
		return errors.Join(fmt.Errorf("%s is another file by now", path), putBack(aside, path))
	}
	return os.Remove(aside)
}

// beside is another name for the file.
func beside(path, suffix string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".grace"+suffix)
}

// beforeMove is for the tests: another process may do something at that moment.
// A goroutine of an earlier test may still ask for it when the next one sets it.
var beforeMove atomic.Pointer[func(path string)]

// aboutToMove tells the test.
func aboutToMove(path string) {
	if f := beforeMove.Load(); f != nil {
		(*f)(path)
	}
}

// putBack gives a file its path again, unless the path is taken by now.
func putBack(aside, path string) error {
	err := os.Link(aside, path)
	if err == nil {
		return os.Remove(aside)
	}
	// The directory may allow no second link to a file of another user.
	if _, lerr := os.Lstat(path); errors.Is(lerr, os.ErrNotExist) {
		err = os.Rename(aside, path)
	}
	return err
}

// A socketFile is the file of a unix socket, as this process sees it.
type socketFile struct {
	hidden string      // where it is while only this process is to find it; else empty
	like   os.FileInfo // how it was when it was last looked at: its mode and owner
}

// isMine reports whether fi is the file that the socket is bound to.
func (sock *Socket) isMine(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && uint64(st.Dev) == sock.Dev && uint64(st.Ino) == sock.Ino
}

// lost reports whether the path does not lead to this socket any more.
func (sock *Socket) lost() bool {
	if sock.Path == "" || sock.Master {
		return false
	}
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	fi, err := os.Lstat(sock.Path)
	return errors.Is(err, os.ErrNotExist) || err == nil && !sock.isMine(fi)
}

// look remembers the mode and the owner of the file, for another one in its place.
func (sock *Socket) look() {
	if sock.Path == "" {
		return
	}
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	if fi, err := os.Lstat(sock.Path); err == nil && sock.isMine(fi) {
		sock.file.like = fi
	}
}

// refile notes the file that was made anew, and gives it the mode and the owner
// of the one before.
func (sock *Socket) refile() {
	if sock.Path == "" {
		return
	}
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	sock.forgetLocked()
	sock.Closing.Lock() // the next manifest reads it
	sock.Dev, sock.Ino, _ = fileID(sock.Path)
	sock.Closing.Unlock()
	if sock.file.like == nil {
		return
	}
	if st, ok := sock.file.like.Sys().(*syscall.Stat_t); ok {
		os.Lchown(sock.Path, int(st.Uid), int(st.Gid))
	}
	os.Chmod(sock.Path, sock.file.like.Mode().Perm())
}

// hide takes the file away, so that no new client comes, in such a way that show
// can bring it back.
func (sock *Socket) hide() {
	if sock.Path == "" {
		return
	}
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	fi, err := os.Lstat(sock.Path)
	if err != nil || !sock.isMine(fi) {
		return
	}
	sock.file.like = fi
	aboutToMove(sock.Path)
	aside := beside(sock.Path, "")
	if os.Rename(sock.Path, aside) != nil {
		return
	}
	if fi, err := os.Lstat(aside); err == nil && !sock.isMine(fi) {
		putBack(aside, sock.Path) // another file came between the look and the rename
		return
	}
	sock.file.hidden = aside
}

// show takes hide back.
func (sock *Socket) show() {
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	if sock.file.hidden != "" && putBack(sock.file.hidden, sock.Path) == nil {
		sock.file.hidden = ""
	}
}

// unlink removes the file of a unix socket if it is still the one we made.
func (sock *Socket) unlink() {
	if sock.Path == "" {
		return
	}
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	if !sock.forgetLocked() {
		removeFile(sock.Path, sock.isMine)
	}
}

// forget removes the file if it is hidden: nothing brings it back any more.
func (sock *Socket) forget() {
	sock.fileMu.Lock()
	defer sock.fileMu.Unlock()
	sock.forgetLocked()
}

func (sock *Socket) forgetLocked() bool {
	hidden := sock.file.hidden
	if hidden == "" {
		return false
	}
	if fi, err := os.Lstat(hidden); err == nil && sock.isMine(fi) {
		os.Remove(hidden)
	}
	sock.file.hidden = ""
	return true
}
