// Package netns runs a test in a network namespace of its own, where the loopback
// interface can be given any address. That needs Linux; elsewhere the package is empty.
package netns
