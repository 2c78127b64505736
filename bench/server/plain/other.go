//go:build !linux

package main

func main() { panic("the benchmark needs Linux") }
