//go:build unix

package fd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked is the error of a lock that another open file has.
var ErrLocked error = unix.EWOULDBLOCK

// lockModes are how a lock's file is opened. NFS locks only what is open for
// writing, see flock(2); elsewhere that would keep the file system from being
// mounted read-only.
var lockModes = []int{os.O_RDONLY, os.O_RDWR}

// OpenLocked opens or creates a lock's file, and takes the exclusive flock(2) of it without
// waiting. If only the lock fails, it returns the file together with the error, which is
// ErrLocked if another open file has the lock. A file of any other type is an error; a
// symbolic link is not followed.
func OpenLocked(path string) (*os.File, error) { return openLocked(path, lockModes) }

// openLocked is OpenLocked, in the first of modes in which the file can be locked.
func openLocked(path string, modes []int) (f *os.File, err error) {
	for _, mode := range modes {
		if f, err = openLock(path, mode); err != nil {
			return nil, err
		}
		if err = tryLock(f); !errors.Is(err, unix.EBADF) {
			break
		}
		f.Close()
	}
	return f, err
}

// openLock opens or creates a lock's file. It does not wait for the other end of a named
// pipe, and does not follow a symbolic link.
func openLock(path string, mode int) (*os.File, error) {
	f, err := os.OpenFile(path, mode|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file (%v); remove it", path, fi.Mode())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		f.Chmod(0o600) // something else has made it; some file systems have no modes
	}
	return f, nil
}

// tryLock takes the exclusive flock(2) of f without waiting.
func tryLock(f *os.File) error { return flock(f, unix.LOCK_EX) }

// TryLockShared takes the shared flock(2) of f without waiting.
func TryLockShared(f *os.File) error { return flock(f, unix.LOCK_SH) }

// Unlock frees the lock, for every descriptor of the open file, which stays open.
func Unlock(f *os.File) error { return flock(f, unix.LOCK_UN) }

func flock(f *os.File, how int) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(n uintptr) {
		for {
			if err = unix.Flock(int(n), how|unix.LOCK_NB); err != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(cerr, err)
}
