//go:build unix

// Socketmaster stands in for the two programs of that name, zimbatm's and
// tokopedia's, in what a child sees of them: the descriptor, the variables, the
// signals, the pipe.
//
// Both: open the socket, start the command with it as descriptor 3 and
// EINHORN_FDS=3. At SIGHUP start another child, sleep -start milliseconds, then
// send SIGTERM to all other children. Forward SIGINT, SIGTERM and SIGQUIT. Read
// each child's stdout and stderr line by line from one pipe. End when no child
// is left. A child that ends is not started again. Signals that arrive during
// the sleep are lost.
//
// zimbatm's (the default) gives the command no arguments at all, not even a
// name, and at SIGUSR1 executes itself again, with the socket, and without
// knowing its children any more.
//
// tokopedia's (-tokopedia) gives the command the arguments that are left. With
// -wait-child-notif it tells the children SOCKETMASTER_PID, and sends SIGTERM
// only when SIGUSR1 has come, to all children but the one started last, or to
// all if none was started since the last SIGUSR1 and there are several.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

var (
	command   = flag.String("command", "", "program to start")
	listen    = flag.String("listen", "tcp://:8080", "what to listen on: tcp://host:port or unix:///path")
	start     = flag.Int("start", 3000, "milliseconds that a new child takes to start")
	tokopedia = flag.Bool("tokopedia", false, "be tokopedia's")
	wait      = flag.Bool("wait-child-notif", false, "wait for SIGUSR1 from the new child (tokopedia's)")
)

const socketVariable = "SOCKETMASTER_FD"

func main() {
	flag.Parse()
	log.SetPrefix(fmt.Sprintf("socketmaster[%d] ", os.Getpid()))
	sock, err := socket()
	if err != nil {
		log.Fatal(err)
	}
	path, err := exec.LookPath(*command)
	if err != nil {
		log.Fatal(err)
	}
	m := &master{path: path, sock: sock, children: map[*os.Process]bool{}, none: make(chan struct{})}
	signals := make(chan os.Signal, 1)
	m.signals = signals
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1)
	go m.handle(signals)
	if _, err := m.start(); err != nil {
		log.Fatal(err)
	}
	<-m.none
}

// socket opens the socket, or takes the one of before the exec.
func socket() (*os.File, error) {
	if n, err := strconv.Atoi(os.Getenv(socketVariable)); err == nil {
		os.Unsetenv(socketVariable)
		syscall.CloseOnExec(n)
		return os.NewFile(uintptr(n), "socket"), nil
	}
	u, err := url.Parse(*listen)
	if err != nil {
		return nil, err
	}
	addr := u.Host
	if u.Scheme == "unix" {
		addr = u.Path
	}
	l, err := net.Listen(u.Scheme, addr)
	if err != nil {
		return nil, err
	}
	log.Println("Listening on", l.Addr())
	return l.(interface{ File() (*os.File, error) }).File()
}

type master struct {
	path string
	sock *os.File

	mu       sync.Mutex
	children map[*os.Process]bool
	none     chan struct{} // closed when no child is left
	signals  <-chan os.Signal
}

func (m *master) handle(signals <-chan os.Signal) {
	var newest *os.Process
	for s := range signals {
		var err error
		switch {
		case s == syscall.SIGHUP:
			if newest, err = m.start(); err != nil {
				log.Println("Could not start new process:", err)
				continue
			}
			if !*wait {
				m.stopOthers(newest)
				newest = nil
			}
		case s == syscall.SIGUSR1 && *tokopedia:
			if *wait {
				m.stopOthers(newest)
				newest = nil
			}
		case s == syscall.SIGUSR1:
			log.Fatal(m.again())
		default:
			m.signal(s, nil)
		}
	}
}

// again executes this program again.
func (m *master) again() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fd, err := syscall.Dup(int(m.sock.Fd())) // without close-on-exec
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), fmt.Sprintf("%s=%d", socketVariable, fd)))
}

func (m *master) start() (*os.Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	argv, env := []string{}, append(os.Environ(), "EINHORN_FDS=3")
	if *tokopedia {
		argv = append([]string{m.path}, flag.Args()...)
	}
	if *wait {
		env = append(env, fmt.Sprintf("SOCKETMASTER_PID=%d", os.Getpid()))
	}
	// With the Go of their time, os.StartProcess does this to a socket, for all
	// that have it.
	if err := syscall.SetNonblock(int(m.sock.Fd()), false); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := os.StartProcess(m.path, argv, &os.ProcAttr{Env: env, Files: []*os.File{os.Stdin, w, w, m.sock}})
	if err != nil {
		r.Close()
		return nil, err
	}
	log.Println("Starting", m.path, p.Pid)
	m.children[p] = true
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := bufio.NewReader(r)
		for err := error(nil); err == nil; {
			var line string
			if line, err = b.ReadString('\n'); line != "" {
				log.Printf("[%d] %s", p.Pid, line)
			}
		}
	}()
	go func() {
		state, err := p.Wait()
		log.Println(p.Pid, state, err)
		// The real ones close the pipe here, and may lose the child's last lines.
		select {
		case <-read:
		case <-time.After(time.Second):
		}
		r.Close()
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.children, p)
		if len(m.children) == 0 {
			close(m.none)
		}
	}()
	return p, nil
}

func (m *master) stopOthers(newest *os.Process) {
	time.Sleep(time.Duration(*start) * time.Millisecond)
	// As in the original, what came during the sleep is lost.
	select {
	case <-m.signals:
	default:
	}
	m.mu.Lock()
	n := len(m.children)
	m.mu.Unlock()
	if n < 2 {
		log.Println("Failed to kill old process, because there's no one left in the group")
		return
	}
	m.signal(syscall.SIGTERM, newest)
}

func (m *master) signal(s os.Signal, except *os.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.children {
		if p != except {
			p.Signal(s)
		}
	}
}
