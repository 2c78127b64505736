package grace

import (
	"os"
	"path/filepath"
	"testing"
)

// What was there before is left under the other name: to remove it takes a disk its
// time. A directory, or nothing, is as for rename(2).
func TestSwap(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	put := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(from, "1")
	if err := swap(from, to); err != nil {
		t.Fatal(err)
	}
	alone(t, dir, "to")
	put(from, "2")
	if err := swap(from, to); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, to); got != "2" {
		t.Errorf("the file has %q, want 2", got)
	}
	if _, err := os.Lstat(from); err == nil {
		if got := readFile(t, from); got != "1" { // else the file system can't trade names
			t.Errorf("beside it there is %q, want what was there before: 1", got)
		}
	}
	put(from, "3")
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := swap(from, sub); err == nil {
		t.Error("a directory was replaced")
	}
	alone(t, dir, "from", "sub", "to")
}
