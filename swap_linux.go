package grace

import (
	"os"

	"golang.org/x/sys/unix"
)

// swap puts the file from at the path to, so that a reader sees one whole file or
// the other. What was there has the path from then: to remove it, as rename(2) does,
// takes ext4 a millisecond, since it writes the new file out before, and frees the
// blocks of the one before. Where nothing is there, or the file system can't trade
// names, it is a rename.
func swap(from, to string) error {
	fi, err := os.Lstat(to)
	if err == nil && fi.Mode().IsRegular() && unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE) == nil {
		return nil
	}
	return os.Rename(from, to)
}
