//go:build !linux

package main

import "log"

func main() { log.Fatal("the socket options that the test reads are Linux's") }
