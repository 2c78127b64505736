//go:build !unix

package grace

import "os"

func (u *Upgrader) handleHangup([]os.Signal, <-chan struct{}) {}

func endEarlyHangup() {}
