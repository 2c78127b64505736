package fd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// On NFS flock(2) gives EBADF for a file that is open for reading only. Elsewhere it does
// so for one that is open with O_PATH.
func TestLockForWritersOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	none, err := openLock(path, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	if err := tryLock(none); !errors.Is(err, unix.EBADF) {
		t.Errorf("a lock of a file that is open for nothing: %v, want EBADF", err)
	}
	none.Close()
	f, err := openLocked(path, []int{unix.O_PATH, os.O_RDWR})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if other, err := OpenLocked(path); err == nil {
		t.Error("it is not locked")
	} else {
		other.Close()
	}
}
