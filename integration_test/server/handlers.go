package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/load"
)

func handlers(u *grace.Upgrader) http.Handler {
	mux := http.NewServeMux()
	socketHandlers(mux, u)
	text := func(path string, f func(*http.Request) any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, f(r)) })
	}
	text("/pid", func(*http.Request) any { return os.Getpid() })
	text("/gen", func(*http.Request) any { return u.Generation() })
	text("/version", func(*http.Request) any { return version })
	text("/env", func(*http.Request) any { return strings.Join(os.Environ(), "\n") })
	text("/args", func(*http.Request) any { return strings.Join(os.Args, "\n") })
	text("/fds", func(*http.Request) any { return openFiles() })
	text("/gc", func(*http.Request) any { runtime.GC(); return os.Getpid() }) // which stops all goroutines for a moment
	text("/rss", func(*http.Request) any { return residentKB() })
	text("/goroutines", func(r *http.Request) any {
		if r.FormValue("stacks") != "" {
			b := make([]byte, 1<<20)
			return string(b[:runtime.Stack(b, true)])
		}
		return runtime.NumGoroutine()
	})
	// /slow?ms=N answers with the pid after N milliseconds.
	text("/slow", func(r *http.Request) any {
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return os.Getpid()
	})
	// /run?arg=env&arg=… runs a program, as a server's own exec.Command does.
	text("/run", func(r *http.Request) any {
		r.ParseForm()
		args := r.Form["arg"]
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return err
		}
		return string(out)
	})
	text("/exit", func(r *http.Request) any {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
		return nil
	})
	mux.HandleFunc("/readyz", grace.Readiness)
	streamHandlers(mux)
	carryHandlers(mux)
	mux.HandleFunc("/hold", hold)
	mux.Handle("load/", load.Handler()) // for the clients of package load, by their Host
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		limit, err := parseLimit(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		lift, err := limit.impose()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		err = u.Upgrade(context.Background())
		lift()
		json.NewEncoder(w).Encode(classify(err))
	})
	return mux
}

// hold answers with the pid at once, and with "done" and the pid once the
// request's body has ended: so the client says how long it takes.
func hold(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex()
	fmt.Fprintln(w, os.Getpid())
	rc.Flush()
	if _, err := io.Copy(io.Discard, r.Body); err == nil {
		fmt.Fprintln(w, "done", os.Getpid())
	}
}

// A Result is what /upgrade answers with.
type Result struct {
	Err     string   // the error's text; empty if there was none
	Is      []string // names of the package's errors that it is
	Upgrade bool     // it is a *grace.UpgradeError
	Pid     int      // of that error
	Status  string   // of that error: "exit status 3", "signal: killed"
}

func classify(err error) Result {
	if err == nil {
		return Result{}
	}
	r := Result{Err: err.Error()}
	for name, target := range map[string]error{
		"ErrNotSupported": grace.ErrNotSupported, "ErrStopped": grace.ErrStopped, "ErrHandedOver": grace.ErrHandedOver,
		"ErrRefused": grace.ErrRefused, "ErrStart": grace.ErrStart, "ErrExited": grace.ErrExited,
		"ErrReadyTimeout": grace.ErrReadyTimeout, "ErrProtocol": grace.ErrProtocol, "ErrRolledBack": grace.ErrRolledBack,
		"ErrUnhealthy": grace.ErrUnhealthy,
	} {
		if errors.Is(err, target) {
			r.Is = append(r.Is, name)
		}
	}
	slices.Sort(r.Is)
	var ue *grace.UpgradeError
	if errors.As(err, &ue) {
		r.Upgrade, r.Pid = true, ue.Pid
		if ue.State != nil {
			r.Status = ue.State.String()
		}
	}
	return r
}

// openFiles lists /proc/self/fd, one "number target" a line.
func openFiles() string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			fmt.Fprintln(&b, e.Name(), target)
		}
	}
	return b.String()
}

// residentKB is the memory in use after a collection, as the kernel counts it.
func residentKB() int {
	debug.FreeOSMemory()
	b, _ := os.ReadFile("/proc/self/status")
	kb := 0
	if _, rest, ok := strings.Cut(string(b), "VmRSS:"); ok {
		fmt.Sscan(rest, &kb)
	}
	return kb
}
