package fd

import (
	"os"
	"path/filepath"
)

// HiddenBeside is the name of a hidden file in the directory of path.
func HiddenBeside(path, suffix string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+suffix)
}

// PointsTo reports whether f is what path names.
func PointsTo(path string, f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
