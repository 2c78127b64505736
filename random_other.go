//go:build !linux

package grace

import "crypto/rand"

func readRandom(b []byte) { rand.Read(b) }
