//go:build !(linux && (amd64 || arm64))

package hangup

// Supported reports whether Swallow can do anything here.
const Supported = false

// Swallow does nothing.
func Swallow() {}

// Restore does nothing.
func Restore() (came bool) { return false }
