package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/julofinance/grace/v3"
)

// A misbehaviour is what the file said: one of
//
//	exit=CODE@STEP           end at this step
//	hang@STEP                do nothing more from this step on
//	pause@STEP               say "paused at STEP pid=N", go on at SIGUSR1
//	fail                     the ready check fails
//	unreadable               the state can't be restored, see carry.go
//	stop                     the program is told to stop before it listens
//	panic-after-ready=DELAY  and exit-after-ready=DELAY, kill-after-ready=DELAY,
//	                         close-after-ready=DELAY: it gives up by itself
//
// The steps are start (nothing of the hand-over was read), manifest (it was),
// listen (the sockets are there), check (inside the ready check) and restore (some of the
// state has come). The first generation does not read the file, and the process that reads it removes it.
type misbehaviour struct {
	mode, arg, step string
}

// successor is set for all generations but the first.
const successor = "TEST_SUCCESSOR"

func loadMisbehaviour(path string) *misbehaviour {
	m := &misbehaviour{}
	first := os.Getenv(successor) == ""
	os.Setenv(successor, "1")
	if path == "" || first {
		return m
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return m
	}
	os.Remove(path)
	text, step, _ := strings.Cut(strings.TrimSpace(string(b)), "@")
	m.mode, m.arg, _ = strings.Cut(text, "=")
	m.step = step
	return m
}

// at misbehaves if this is the step for it.
func (m *misbehaviour) at(step string) {
	if m.step != step {
		return
	}
	switch m.mode {
	case "exit":
		code, _ := strconv.Atoi(m.arg)
		os.Exit(code)
	case "hang":
		fmt.Printf("hangs at %s pid=%d\n", step, os.Getpid())
		<-make(chan struct{})
	case "pause":
		c := make(chan os.Signal, 1)
		signal.Notify(c, resumeSignal)
		fmt.Printf("paused at %s pid=%d\n", step, os.Getpid())
		<-c
		signal.Stop(c)
	}
}

func (m *misbehaviour) check(context.Context) error {
	m.at("check")
	if m.mode == "fail" {
		return errors.New("not today")
	}
	return nil
}

// afterReady misbehaves once this process serves.
func (m *misbehaviour) afterReady(u *grace.Upgrader) {
	if !strings.HasSuffix(m.mode, "-after-ready") || u.Ready() != nil {
		return
	}
	d, err := time.ParseDuration(m.arg)
	if err != nil {
		panic(err)
	}
	time.Sleep(d)
	switch m.mode {
	case "panic-after-ready":
		panic("this version is broken")
	case "exit-after-ready":
		os.Exit(7)
	case "kill-after-ready":
		p, _ := os.FindProcess(os.Getpid())
		p.Kill()
	case "close-after-ready":
		u.Abort()
	}
}
