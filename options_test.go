package grace

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
)

func TestBadOptions(t *testing.T) {
	const second = time.Second
	for want, opt := range map[string]Option{
		"grace: ReadyTimeout: 0s is not above zero":                                                ReadyTimeout(0),
		"grace: ReadyTimeout: -1s is not above zero":                                               ReadyTimeout(-second),
		"grace: DrainTimeout: -1s is below zero":                                                   DrainTimeout(-second),
		"grace: Probation: -1ns is below zero":                                                     Probation(-1),
		"grace: Linger: 0s is not above zero":                                                      Linger(0, 1),
		"grace: Linger: -1 processes is below zero":                                                Linger(second, -1),
		"grace: Executable: the path is empty":                                                     Executable(""),
		"grace: UpgradeSignals: a signal is nil":                                                   UpgradeSignals(os.Interrupt, nil),
		"grace: StopSignals: a signal is nil":                                                      StopSignals(os.Interrupt, nil),
		"grace: UpgradeSignals: a process can't handle killed (9); use another signal, as SIGUSR2": UpgradeSignals(os.Interrupt, os.Kill),
	} {
		t.Run(want, func(t *testing.T) {
			u, err := New(opt)
			if err == nil || u != nil || err.Error() != want {
				t.Errorf("got %v and error %v, want %q", u, err, want)
			}
		})
	}
	if err := Serve("127.0.0.1:0", nil, Probation(-1)); err == nil || !strings.Contains(err.Error(), "Probation") {
		t.Errorf("Serve: %v, want the option's error", err)
	}
}

func TestDefaultOptions(t *testing.T) {
	t.Setenv("GRACE_PIDFILE", "from-env.pid")
	o, err := newOptions([]Option{nil})
	if err != nil {
		t.Fatal(err)
	}
	if o.readyTimeout != time.Minute || o.drainTimeout != 30*time.Second || o.probation != time.Second {
		t.Errorf("timeouts %v, %v, %v; want 1m, 30s, 1s", o.readyTimeout, o.drainTimeout, o.probation)
	}
	if o.move != sockets.CanMove || o.moveTLS {
		t.Errorf("connections move: %t, those over TLS: %t; want %t, false", o.move, o.moveTLS, sockets.CanMove)
	}
	if o.lingerProcesses != 0 {
		t.Errorf("%d processes may linger, want none", o.lingerProcesses)
	}
	if o.pidFile != "from-env.pid" {
		t.Errorf("PID file %q, want that of GRACE_PIDFILE", o.pidFile)
	}
	if o, _ = newOptions([]Option{PIDFile("mine"), DrainTimeout(5 * time.Second), Logger(nil), NoSignals()}); o.pidFile != "mine" ||
		o.drainTimeout != 5*time.Second || !o.noSignals || o.log == nil {
		t.Errorf("got %+v", o)
	}
}

// TestSignalOptions: what is not said has its default, but for what the other option names.
func TestSignalOptions(t *testing.T) {
	term, interrupt := os.Signal(syscall.SIGTERM), os.Interrupt
	for name, c := range map[string]struct {
		opts            []Option
		upgrades, stops []os.Signal
	}{
		"none":                        {nil, upgradeSignals, stopSignals},
		"an upgrade signal":           {[]Option{UpgradeSignals(term)}, []os.Signal{term}, without(stopSignals, []os.Signal{term})},
		"no upgrade signal":           {[]Option{UpgradeSignals()}, nil, stopSignals},
		"a stop signal":               {[]Option{StopSignals(interrupt)}, upgradeSignals, []os.Signal{interrupt}},
		"no stop signal":              {[]Option{StopSignals()}, upgradeSignals, nil},
		"both":                        {[]Option{StopSignals(term), UpgradeSignals(interrupt)}, []os.Signal{interrupt}, []os.Signal{term}},
		"NoSignals":                   {[]Option{NoSignals()}, nil, nil},
		"NoSignals but one":           {[]Option{UpgradeSignals(term), NoSignals()}, []os.Signal{term}, nil},
		"the default ones, crosswise": {[]Option{StopSignals(upgradeSignals...)}, nil, upgradeSignals},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := newOptions(c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(o.upgradeOn, c.upgrades) || !slices.Equal(o.stopOn, c.stops) {
				t.Errorf("%v upgrade and %v stop, want %v and %v", o.upgradeOn, o.stopOn, c.upgrades, c.stops)
			}
		})
	}
	if _, err := newOptions([]Option{UpgradeSignals(term), StopSignals(interrupt, term)}); err == nil || !strings.Contains(err.Error(), "terminated is in both") {
		t.Errorf("got %v, want an error that says that one is in both", err)
	}
}

func TestErrorsCanBeToldApart(t *testing.T) {
	all := []error{
		ErrNotSupported, ErrStopped, ErrHandedOver, ErrRefused, ErrStart, ErrExited, ErrReadyTimeout,
		ErrProtocol, ErrRolledBack, ErrUnhealthy, ErrAlreadyRunning, ErrUpgraderExists, ErrPathInUse, ErrState,
	}
	cause := errors.New("the cause")
	for _, reason := range all {
		for _, err := range []error{
			&UpgradeError{Reason: reason},
			&UpgradeError{Reason: reason, Pid: 7, Err: cause},
			fmt.Errorf("wrapped: %w", &UpgradeError{Reason: reason, Err: cause}),
		} {
			for _, target := range all {
				want := target == reason || reason == ErrUnhealthy && target == ErrRolledBack
				if got := errors.Is(err, target); got != want {
					t.Errorf("errors.Is(%q, %q) is %v, want %v", err, target, got, want)
				}
			}
			var ue *UpgradeError
			if !errors.As(err, &ue) || ue.Reason != reason || errors.Is(err, cause) != (ue.Err != nil) {
				t.Errorf("errors.As(%q) gives %+v", err, ue)
			}
			if strings.Count(err.Error(), "grace: ") != 1 || !strings.Contains(err.Error(), reason.Error()) {
				t.Errorf("error text %q, want one with the reason and grace: once", err)
			}
		}
	}
	for want, err := range map[string]*RunningError{
		"grace: already running as pid 7, which holds the PID file /x":  {Path: "/x", Pid: 7},
		"grace: already running: another process holds the PID file /x": {Path: "/x"},
	} {
		if !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error text %q, want one that begins with %q", err, want)
		}
		var re *RunningError
		if !errors.Is(err, ErrAlreadyRunning) || errors.Is(err, ErrUpgraderExists) || !errors.As(fmt.Errorf("x: %w", err), &re) {
			t.Errorf("%v is not ErrAlreadyRunning alone", err)
		}
	}
	e := &UpgradeError{Reason: ErrExited, Pid: 9, Err: cause}
	if got, want := e.Error(), "grace: the new process ended before it was ready (pid 9): the cause"; got != want {
		t.Errorf("error text %q, want %q", got, want)
	}
}

func TestAdviceForEveryReason(t *testing.T) {
	seen := map[string]error{}
	for _, reason := range []error{ErrRefused, ErrStart, ErrExited, ErrReadyTimeout, ErrProtocol, ErrRolledBack, ErrUnhealthy} {
		a := advice(&UpgradeError{Reason: reason})
		if seen[a] != nil || a == "" {
			t.Errorf("%v has the advice of %v: %q", reason, seen[a], a)
		}
		seen[a] = reason
	}
}

// The import adds no flags, as the first version's did.
func TestNoFlags(t *testing.T) {
	for _, name := range []string{"p", "t"} {
		if f := flag.CommandLine.Lookup(name); f != nil {
			t.Errorf("the package has registered -%s", name)
		}
	}
}
