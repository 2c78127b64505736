package grace

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

func TestBadOptions(t *testing.T) {
	const second = time.Second
	for want, opt := range map[string]Option{
		"grace: ReadyTimeout: 0s is not above zero":                                         ReadyTimeout(0),
		"grace: ReadyTimeout: -1s is not above zero":                                        ReadyTimeout(-second),
		"grace: DrainTimeout: -1s is below zero":                                            DrainTimeout(-second),
		"grace: Probation: -1ns is below zero":                                              Probation(-1),
		"grace: ReadTimeout: -1s is below zero":                                             ReadTimeout(-second),
		"grace: ReadHeaderTimeout: -1s is below zero":                                       ReadHeaderTimeout(-second),
		"grace: WriteTimeout: -1s is below zero":                                            WriteTimeout(-second),
		"grace: IdleTimeout: -1s is below zero":                                             IdleTimeout(-second),
		"grace: Executable: the path is empty":                                              Executable(""),
		"grace: Signals: a signal is nil":                                                   Signals(os.Interrupt, nil),
		"grace: Signals: a process can't handle killed (9); use another signal, as SIGUSR2": Signals(os.Interrupt, os.Kill),
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
	if o.pidFile != "from-env.pid" {
		t.Errorf("PID file %q, want that of GRACE_PIDFILE", o.pidFile)
	}
	if o, _ = newOptions([]Option{PIDFile("mine"), ShutdownTimeout(5 * time.Second), Logger(nil), Signals()}); o.pidFile != "mine" ||
		o.drainTimeout != 5*time.Second || !o.noSignals || o.log == nil {
		t.Errorf("got %+v", o)
	}
}

func TestErrorsCanBeToldApart(t *testing.T) {
	all := []error{
		ErrNotSupported, ErrStopped, ErrHandedOver, ErrRefused, ErrStart, ErrExited, ErrReadyTimeout,
		ErrProtocol, ErrRolledBack, ErrAlreadyRunning, ErrInUse, ErrAddrInUse,
	}
	cause := errors.New("the cause")
	for _, reason := range all {
		for _, err := range []error{
			&UpgradeError{Reason: reason},
			&UpgradeError{Reason: reason, Pid: 7, Err: cause},
			fmt.Errorf("wrapped: %w", &UpgradeError{Reason: reason, Err: cause}),
		} {
			for _, target := range all {
				if got, want := errors.Is(err, target), target == reason; got != want {
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
		if !errors.Is(err, ErrAlreadyRunning) || errors.Is(err, ErrInUse) || !errors.As(fmt.Errorf("x: %w", err), &re) {
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
	for _, reason := range []error{ErrRefused, ErrStart, ErrExited, ErrReadyTimeout, ErrProtocol, ErrRolledBack} {
		a := advice(&UpgradeError{Reason: reason})
		if seen[a] != nil || a == "" {
			t.Errorf("%v has the advice of %v: %q", reason, seen[a], a)
		}
		seen[a] = reason
	}
}

func TestServerOptions(t *testing.T) {
	for name, c := range map[string]struct {
		opts []Option
		want *http.Server
		dies time.Duration // the drain timeout
	}{
		"none": {nil, &http.Server{}, 30 * time.Second},
		"all": {
			[]Option{ReadTimeout(1), ReadHeaderTimeout(2), WriteTimeout(3), IdleTimeout(4), ShutdownTimeout(5)},
			&http.Server{ReadTimeout: 1, ReadHeaderTimeout: 2, WriteTimeout: 3, IdleTimeout: 4}, 5,
		},
		"a Config of the first version": {
			Config{}.options(), &http.Server{ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}, 10 * time.Second,
		},
		"a Config with all": {
			Config{Timeout: 1, HTTPReadTimeout: 2, HTTPWriteTimeout: 3}.options(), &http.Server{ReadTimeout: 2, WriteTimeout: 3}, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := newOptions(c.opts)
			if err != nil {
				t.Fatal(err)
			}
			got := o.server("addr", http.NotFoundHandler())
			if got.ReadTimeout != c.want.ReadTimeout || got.ReadHeaderTimeout != c.want.ReadHeaderTimeout ||
				got.WriteTimeout != c.want.WriteTimeout || got.IdleTimeout != c.want.IdleTimeout {
				t.Errorf("the server has %v, %v, %v, %v; want %v, %v, %v, %v",
					got.ReadTimeout, got.ReadHeaderTimeout, got.WriteTimeout, got.IdleTimeout,
					c.want.ReadTimeout, c.want.ReadHeaderTimeout, c.want.WriteTimeout, c.want.IdleTimeout)
			}
			if got.Addr != "addr" || got.Handler == nil || o.drainTimeout != c.dies {
				t.Errorf("address %q, handler %v, drain timeout %v", got.Addr, got.Handler, o.drainTimeout)
			}
		})
	}
}

// Only who asks for the flags of the first version has them.
func TestFlagsAreAskedFor(t *testing.T) {
	for _, name := range []string{"p", "t"} {
		if f := flag.CommandLine.Lookup(name); f != nil {
			t.Errorf("the package has registered -%s", name)
		}
	}
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	RegisterFlags(fs)
	for _, name := range []string{"p", "t"} {
		if fs.Lookup(name) == nil {
			t.Errorf("RegisterFlags has not registered -%s", name)
		}
	}
}
