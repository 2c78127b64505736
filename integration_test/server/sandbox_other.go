//go:build !linux

package main

func sandbox() {}
