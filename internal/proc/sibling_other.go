//go:build unix && !linux

package proc

import "errors"

// CanSibling reports whether a process can be started as a sibling.
func CanSibling() bool { return false }

func newSibling(*life) Process { return nil }

func startSibling(Program, []uintptr) (Process, error) { return nil, errors.ErrUnsupported }
