package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/julofinance/grace/v3"
)

// Flags of the tests of what the next generation is started with, and of signals.
var (
	dirPath = flag.String("dir", "", "Dir option")
	title   = flag.Bool("title", false, "the first generation writes a title over its arguments before New, as setproctitle(3) does, and changes its directory")
	onHup   = flag.Bool("hup", false, "SIGHUP upgrades")
	notify  = flag.Bool("notify", false, "Run's context ends by SIGTERM and SIGINT")
	noStop  = flag.Bool("nostop", false, "grace handles no stop signals")
)

// argv is where the system has put the arguments; os.Args is a copy from here on.
var argv = func() []string {
	argv := slices.Clone(os.Args)
	for i, arg := range argv {
		os.Args[i] = strings.Clone(arg)
	}
	return argv
}()

// startOptions are those that these flags ask for.
func startOptions() (opts []grace.Option) {
	if *title && os.Getenv(generationVariable) == "" {
		for _, arg := range argv {
			b := unsafe.Slice(unsafe.StringData(arg), len(arg))
			for i := range b {
				b[i] = 'x'
			}
		}
		os.Chdir("/")
		os.Unsetenv("PATH")
	}
	if *dirPath != "" {
		opts = append(opts, grace.Dir(*dirPath))
	}
	if *onHup {
		opts = append(opts, grace.UpgradeSignals(syscall.SIGHUP))
	}
	if *noStop {
		opts = append(opts, grace.StopSignals())
	}
	return opts
}

// runContext is Run's, and what ends it.
func runContext() (context.Context, context.CancelFunc) {
	if *notify {
		return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	}
	return context.WithCancel(context.Background())
}
