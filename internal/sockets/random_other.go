//go:build !linux

package sockets

import "crypto/rand"

func readRandom(b []byte) { rand.Read(b) }
