//go:build !linux

// Bench needs Linux.
package main

func main() { panic("the benchmark needs Linux") }
