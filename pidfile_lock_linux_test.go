package grace

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// On NFS flock(2) gives EBADF for what is open for reading; here it does for what
// is open for nothing.
func TestPIDFileLockForWritersOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	none, err := openLock(path, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, tryLock(none), unix.EBADF)
	none.Close()
	f, err := openLocked(path, []int{unix.O_PATH, os.O_RDWR})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if other, err := openLocked(path, lockModes); err == nil {
		t.Error("it is not locked")
	} else {
		other.Close()
	}
}

// Anybody may lock a directory that all can read: it does not keep a stale socket
// there for ever.
func TestStaleSocketInALockedDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	stranger, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if err := tryLock(stranger); err != nil {
		t.Fatal(err)
	}
	l, err := openPath(path, "unix", func() (net.Listener, error) { return net.Listen("unix", path) })
	if err != nil {
		t.Fatal(err)
	}
	alone(t, dir, "s")
	l.Close()
}
