//go:build unix

// Einhorn stands in for the program of that name, in manual acknowledgement
// mode and with one worker, in what the worker sees of it: the descriptors, the
// variables, the command socket, the signals.
//
// At SIGHUP it starts another worker, and sends SIGUSR2 to the old ones when
// that one has acknowledged itself. SIGINT and SIGUSR2 send SIGUSR2 to all and
// end it when they have ended; SIGTERM sends SIGTERM. SIGQUIT sends SIGQUIT and
// ends it at once. A worker that ends otherwise is started again.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

var (
	command = flag.String("c", "einhorn", "name in the command socket's path")
	old     = flag.Bool("old", false, "set only the old variables")
	asFD    = flag.Bool("command-socket-as-fd", false, "pass the command socket as a descriptor too")
	closed  = flag.Bool("closed", false, "say that it is passed, but do not: what -command-socket-as-fd comes to since Ruby 2.0")
)

type binds []string

func (b *binds) String() string     { return strings.Join(*b, " ") }
func (b *binds) Set(s string) error { *b = append(*b, s); return nil }

type worker struct {
	proc         *os.Process
	acked, asked bool
}

type event struct {
	ack    string // a line of the command socket
	exited *worker
	state  *os.ProcessState
}

type master struct {
	socks   []*os.File
	path    string // of the command socket
	workers []*worker
	events  chan event
	respawn bool
}

func main() {
	var b binds
	flag.Var(&b, "b", "host:port or path to bind; may be repeated")
	flag.Parse()
	log.SetPrefix(fmt.Sprintf("[MASTER %d] ", os.Getpid()))
	m := &master{path: *command, events: make(chan event), respawn: true}
	for _, addr := range b {
		network := "tcp"
		if strings.Contains(addr, "/") {
			network = "unix"
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			log.Fatal(err)
		}
		log.Println("Binding to", l.Addr())
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			log.Fatal(err)
		}
		m.socks = append(m.socks, f)
	}
	commands, err := net.Listen("unix", m.path)
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(m.path)
	go m.listen(commands)
	m.run()
}

// listen hears the workers' acknowledgements; anything else on the socket is
// not a worker's to say.
func (m *master) listen(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				m.events <- event{ack: line}
			}
		}()
	}
}

func (m *master) run() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR2)
	m.spinUp()
	for len(m.workers) > 0 {
		select {
		case s := <-signals:
			switch s {
			case syscall.SIGHUP:
				if m.respawn {
					m.spinUp()
				}
				continue
			case syscall.SIGINT:
				s = syscall.SIGUSR2
			}
			m.respawn = false
			m.signalAll(m.workers, s)
			if s == syscall.SIGQUIT {
				os.Exit(1)
			}
		case e := <-m.events:
			switch {
			case e.exited != nil:
				m.mourn(e.exited, e.state)
			default:
				m.acknowledge(e.ack)
			}
		}
	}
}

// acknowledge takes {"command":"worker:ack","pid":N}, to the byte.
func (m *master) acknowledge(line string) {
	for i, w := range m.workers {
		if line != fmt.Sprintf("{\"command\":\"worker:ack\",\"pid\":%d}\n", w.proc.Pid) {
			continue
		}
		log.Println("Received a manual ACK from", w.proc.Pid)
		w.acked = true
		m.signalAll(m.workers[:i], syscall.SIGUSR2)
		return
	}
	log.Printf("Could not find state for %q; ignoring ACK.", line)
}

func (m *master) signalAll(workers []*worker, s os.Signal) {
	for _, w := range workers {
		w.asked = true
		w.proc.Signal(s)
	}
}

func (m *master) mourn(w *worker, state *os.ProcessState) {
	log.Println("===> Exited worker", w.proc.Pid, state)
	for i := range m.workers {
		if m.workers[i] == w {
			m.workers = append(m.workers[:i:i], m.workers[i+1:]...)
			break
		}
	}
	if m.respawn && !w.asked {
		m.spinUp()
	}
}

func (m *master) spinUp() {
	env := append(os.Environ(), fmt.Sprintf("EINHORN_MASTER_PID=%d", os.Getpid()), "EINHORN_SOCK_PATH="+m.path)
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	var fds []string
	for i, s := range m.socks {
		fds = append(fds, fmt.Sprint(len(files)))
		if !*old {
			env = append(env, fmt.Sprintf("EINHORN_FD_%d=%d", i, len(files)))
		}
		files = append(files, s)
	}
	env = append(env, "EINHORN_FDS="+strings.Join(fds, " "))
	if !*old {
		env = append(env, fmt.Sprintf("EINHORN_FD_COUNT=%d", len(fds)), "EINHORN_CHILD_INDEX=0")
	}
	if *asFD {
		c, err := net.Dial("unix", m.path)
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		f, err := c.(*net.UnixConn).File()
		if err != nil {
			log.Fatal(err)
		}
		defer f.Close()
		env = append(env, fmt.Sprintf("EINHORN_SOCK_FD=%d", len(files)))
		if !*closed {
			files = append(files, f)
		}
	}
	argv := flag.Args()
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Env: env, Files: files})
	if err != nil {
		log.Fatal(err)
	}
	w := &worker{proc: p}
	m.workers = append(m.workers, w)
	log.Println("===> Launched", p.Pid)
	go func() {
		state, err := p.Wait()
		if err != nil {
			log.Println(err)
		}
		m.events <- event{exited: w, state: state}
	}()
}
