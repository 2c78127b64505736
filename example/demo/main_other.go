//go:build !unix

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "demo: an upgrade needs a unix system")
	os.Exit(2)
}
