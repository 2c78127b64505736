//go:build unix

package grace

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockModes are how a lock's file is opened. NFS locks only what is open for
// writing, see flock(2); elsewhere that would keep the file system from being
// mounted read-only.
var lockModes = []int{os.O_RDONLY, os.O_RDWR}

// openLocked opens a lock's file, or makes it, and locks it, in the first of the
// modes in which it can be locked. An error may come with the file: it is open,
// and not locked.
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

// openLock opens a lock's file, or makes it. Whatever else is there is not waited
// for (a named pipe), and not followed.
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
		f.Chmod(0o600) // made by somebody else; some file systems have no modes
	}
	return f, nil
}

// tryLock takes the exclusive flock(2) of f, or errLocked.
func tryLock(f *os.File) error { return flock(f, unix.LOCK_EX) }

// tryLockShared takes the shared one.
func tryLockShared(f *os.File) error { return flock(f, unix.LOCK_SH) }

// unlock frees the lock, for all that have the open file; it stays open.
func unlock(f *os.File) error { return flock(f, unix.LOCK_UN) }

func flock(f *os.File, how int) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		for {
			if err = unix.Flock(int(fd), how|unix.LOCK_NB); err != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(cerr, err)
}
