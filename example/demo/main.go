//go:build unix

// Demo upgrades a server again and again under load, and shows what gets lost.
//
//	make demo
//	make demo ARGS="-upgrades 100 -clients 8"
//	make demo ARGS="-how restart"   what it is like without
//	make demo ARGS="-break 3"       every third new version is broken
//	make demo ARGS="-kinds tls=16,http2=8"
//	make demo ARGS="-movetls"       connections over TLS move too
//
// The clients of the kinds tls and http2 speak TLS, the others none.
//
// It ends with status 1 if anything was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
)

type config struct {
	upgrades  int
	pause     time.Duration
	how       string
	breakNth  int
	broken    string
	addr      string
	probation time.Duration
	drain     time.Duration
	clients   int
	kinds     string
	delay     time.Duration
	think     time.Duration
	moveTLS   bool
	verbose   bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "server" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		return
	}
	cfg, load, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	// A second Ctrl-C ends the demo at once, and the servers with it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	lost, err := run(ctx, cfg, load)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || lost > 0 {
		os.Exit(1)
	}
}

func parse(args []string) (cfg config, kinds map[load.Kind]int, err error) {
	var names []string
	for _, k := range slices.Concat(load.Kinds, load.SecureKinds) {
		names = append(names, string(k))
	}
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.IntVar(&cfg.upgrades, "upgrades", 8, "how many upgrades")
	f.DurationVar(&cfg.pause, "pause", 500*time.Millisecond, "pause between two upgrades")
	f.StringVar(&cfg.how, "how", "usr2", "how the server is replaced: usr2 (an upgrade), restart (it is stopped and started again), kill (the same with SIGKILL)")
	f.IntVar(&cfg.breakNth, "break", 0, "every `Nth` new version is broken; 0: none")
	f.StringVar(&cfg.broken, "broken", "serving", "when a broken version dies: starting (before it is ready) or serving (after; what it had accepted is lost with it)")
	f.StringVar(&cfg.addr, "addr", "127.0.0.1:0", "where the server listens; for TLS it listens on any port of 127.0.0.1")
	f.DurationVar(&cfg.probation, "probation", 300*time.Millisecond, "how long the old process stands by")
	f.DurationVar(&cfg.drain, "drain", 30*time.Second, "how long the old process may take to finish")
	f.IntVar(&cfg.clients, "clients", 2, "clients of each kind")
	f.StringVar(&cfg.kinds, "kinds", strings.Join(names, ","), "kinds of clients; KIND=N for another number of them")
	f.DurationVar(&cfg.delay, "delay", 2*time.Millisecond, "network delay each way, made by a relay; 0: no relay")
	f.DurationVar(&cfg.think, "think", 40*time.Millisecond, "longest pause of a client between two requests")
	f.BoolVar(&cfg.moveTLS, "movetls", false, "the server has the option MoveTLS: connections of the kind tls move, and are not told to close")
	f.BoolVar(&cfg.verbose, "v", false, "show what the server logs")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return cfg, nil, err
		}
		os.Exit(2) // the flag set has said why
	}
	kinds = map[load.Kind]int{}
	for name := range strings.SplitSeq(cfg.kinds, ",") {
		name, number, given := strings.Cut(strings.TrimSpace(name), "=")
		n := cfg.clients
		if given {
			if n, err = strconv.Atoi(number); err != nil {
				return cfg, nil, fmt.Errorf("-kinds: %q is not a number", number)
			}
		}
		if n > 0 {
			kinds[load.Kind(name)] = n
		}
	}
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case cfg.how != "usr2" && cfg.how != "restart" && cfg.how != "kill":
		err = fmt.Errorf("-how: %q is none of usr2, restart, kill", cfg.how)
	case cfg.broken != "serving" && cfg.broken != "starting":
		err = fmt.Errorf("-broken: %q is none of serving, starting", cfg.broken)
	case cfg.upgrades < 0 || cfg.breakNth < 0 || cfg.pause < 0 || cfg.delay < 0 || cfg.think < 0:
		err = errors.New("a number is below zero")
	case cfg.breakNth > 0 && cfg.how != "usr2":
		err = errors.New("-break needs -how usr2: otherwise no process serves when the new version is broken")
	}
	return cfg, kinds, err
}
