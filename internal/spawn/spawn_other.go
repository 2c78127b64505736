//go:build !(linux && (amd64 || arm64))

package spawn

// Supported reports whether Start can do anything here.
const Supported = false
