//go:build !linux

package grace

import "os"

// swap puts the file from at the path to.
func swap(from, to string) error { return os.Rename(from, to) }
