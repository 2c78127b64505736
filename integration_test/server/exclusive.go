package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/fd"
)

var exclusivePath = flag.String("exclusive", "", "file whose lock is exclusive state, in generations that find it there")

// exclusiveOptions are of a version with exclusive state. It says so when it has that, and
// when it has no longer.
func exclusiveOptions() []grace.Option {
	if _, err := os.Stat(*exclusivePath); *exclusivePath == "" || err != nil {
		return nil
	}
	var lock *os.File
	acquire := func(context.Context) (err error) {
		if lock, err = fd.OpenLocked(*exclusivePath); err == nil {
			fmt.Printf("acquired pid=%d\n", os.Getpid())
		}
		return err
	}
	release := func(context.Context) error {
		fmt.Printf("released pid=%d\n", os.Getpid())
		return lock.Close()
	}
	return []grace.Option{grace.Exclusive(acquire, release)}
}
