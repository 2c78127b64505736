package grace

import (
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
