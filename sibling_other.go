//go:build unix && !linux

package grace

func canSibling() bool { return false }

func newSibling(*life) process { return nil }

func startSibling(command, []uintptr) (process, error) { return nil, ErrNotSupported }
