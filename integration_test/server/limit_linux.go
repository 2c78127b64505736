package main

import (
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A limit is imposed on this process for the time of an upgrade.
type limit struct {
	resource int // -1: none
	value    uint64
}

// parseLimit reads nofile=N, by which N descriptors may be opened, or nproc=N,
// by which this user may have N threads more than this process has.
func parseLimit(r *http.Request) (limit, error) {
	if s := r.FormValue("nofile"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return limit{}, err
		}
		// Descriptors are given out from the lowest number that is free.
		free := 0
		for fd := 0; ; fd++ {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				if free == n {
					return limit{unix.RLIMIT_NOFILE, uint64(fd)}, nil
				}
				free++
			}
		}
	}
	if s := r.FormValue("nproc"); s != "" {
		n, err := strconv.Atoi(s)
		warmThreads()
		tasks, _ := os.ReadDir("/proc/self/task")
		return limit{unix.RLIMIT_NPROC, uint64(len(tasks) + n)}, err
	}
	return limit{resource: -1}, nil
}

func (l limit) impose() (lift func(), err error) {
	if l.resource < 0 {
		return func() {}, nil
	}
	var old unix.Rlimit
	if err := unix.Prlimit(0, l.resource, nil, &old); err != nil {
		return nil, os.NewSyscallError("prlimit", err)
	}
	err = unix.Prlimit(0, l.resource, &unix.Rlimit{Cur: l.value, Max: old.Max}, nil)
	return func() { unix.Prlimit(0, l.resource, &old, nil) }, os.NewSyscallError("prlimit", err)
}

// warmThreads makes threads that the runtime keeps: one that it can't start
// while no process may be started ends the program.
func warmThreads() {
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			ts := unix.NsecToTimespec(int64(50 * time.Millisecond))
			unix.Nanosleep(&ts, nil)
		})
	}
	wg.Wait()
}
