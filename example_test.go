//go:build unix

package grace_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/oklog/run"
)

// quiet: a log line has a time in it, which no checked output can have.
var quiet = grace.Logger(slog.New(slog.DiscardHandler))

// The whole server: kill -USR2 $(cat app.pid) replaces it.
func ExampleServe() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello")
	})
	if err := grace.Serve(":9000", nil, grace.PIDFile("app.pid")); err != nil {
		log.Fatal(err)
	}
}

// A program that has a run.Group already: Actor makes this process ready, and
// ends the group when its part is over.
func ExampleUpgrader_Actor() {
	u, err := grace.New(grace.PIDFile("app.pid"))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", ":9000")
	if err != nil {
		log.Fatal(err)
	}
	var g run.Group
	g.Add(u.Actor())
	g.Add(u.HTTP(&http.Server{Handler: http.DefaultServeMux}, ln))
	// The program's other actors.
	if err := g.Run(); err != nil {
		log.Fatal(err)
	}
}

// Several servers and listeners make one process, and are handed over together.
func ExampleUpgrader_Run() {
	u, err := grace.New(quiet)
	if err != nil {
		log.Fatal(err)
	}
	service, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	admin, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	health := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "well") })

	// Elsewhere: two requests, then the stop that SIGTERM would ask for.
	go func() {
		for _, ln := range []net.Listener{service, admin} {
			resp, err := http.Get("http://" + ln.Addr().String())
			if err != nil {
				log.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			fmt.Printf("%s\n", body)
		}
		http.DefaultClient.CloseIdleConnections()
		u.Shutdown(context.Background())
	}()

	u.HTTP(&http.Server{Handler: hello}, service)
	u.HTTP(&http.Server{Handler: health}, admin)
	err = u.Run(context.Background())
	fmt.Println("ended:", err)
	// Output:
	// hello
	// well
	// ended: <nil>
}

// A server of a protocol of one's own, which answers lines. Its clients stay
// connected over upgrades; package example/tcp is the same for production.
func ExampleUpgrader_Server() {
	u, err := grace.New(quiet)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	handle := func(c net.Conn) {
		r := bufio.NewReader(c)
		var line []byte
		for {
			part, err := r.ReadSlice('\n')
			line = append(line, part...)
			switch {
			case err == nil:
				fmt.Fprintf(c, "you said %s", line)
				line = line[:0]
			case errors.Is(err, grace.ErrMove):
				// There was no end of a line, so that line is all that r has read.
				err := grace.Move(c, line)
				if err == nil {
					return // the new process reads the begin of the line again
				}
				if errors.Is(err, grace.ErrStopped) { // no process takes it
					c.Close()
					return
				}
			default:
				c.Close()
				return
			}
		}
	}
	serve := func(ln net.Listener) error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			go handle(c)
		}
	}

	// Elsewhere: a client, then the stop that SIGTERM would ask for.
	go func() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintln(c, "hello")
		answer, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Print(answer)
		u.Shutdown(context.Background())
	}()

	u.Server(grace.Server{Listener: ln, Serve: serve, Protocol: "lines/1"})
	err = u.Run(context.Background())
	fmt.Println("ended:", err)
	// Output:
	// you said hello
	// ended: <nil>
}

// A program with signals of its own.
func ExampleUpgrader_Upgrade() {
	u, err := grace.New(grace.NoSignals())
	if err != nil {
		log.Fatal(err)
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGTERM)
	go func() {
		for s := range c {
			if s != syscall.SIGHUP {
				go u.Shutdown(context.Background()) // a second one waits for the same
				continue
			}
			go func() { // a SIGTERM may come meanwhile
				err := u.Upgrade(context.Background())
				var failed *grace.UpgradeError
				if errors.As(err, &failed) { // is logged already
					fmt.Println("still serving:", failed.Reason)
				}
			}()
		}
	}()
	ln, err := u.Listen("tcp", ":9000")
	if err != nil {
		log.Fatal(err)
	}
	u.HTTP(&http.Server{}, ln)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A new process that can't reach what it needs must not take over.
func ExampleReadyCheck() {
	backend := func(ctx context.Context) error {
		return errors.New("no connection to the backend")
	}
	err := grace.Serve("127.0.0.1:0", nil, grace.ReadyCheck(backend), quiet)
	fmt.Println(err)
	// Output: grace: ReadyCheck: no connection to the backend
}

// The old process asks the new binary whether it likes its configuration,
// before it starts it in earnest.
func ExampleBeforeUpgrade() {
	check := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, os.Args[0], "-check-config").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := grace.Serve(":9000", nil, grace.BeforeUpgrade(check)); err != nil {
		log.Fatal(err)
	}
}

// A daemon with two servers of its own.
func ExampleNew() {
	server, admin := &http.Server{}, &http.Server{}

	u, err := grace.New(grace.PIDFile("app.pid"))
	if err != nil {
		log.Fatal(err)
	}
	public, err1 := u.Listen("tcp", ":9000")
	private, err2 := u.Listen("unix", "admin.sock")
	if err := errors.Join(err1, err2); err != nil {
		log.Fatal(err)
	}
	u.HTTP(server, public)
	u.HTTP(admin, private)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// Servers of one's own, with their timeouts. One with a certificate serves TLS. The
// PID file is named by the variable GRACE_PIDFILE.
func ExampleListenAndServe() {
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	public := &http.Server{
		Addr: ":9443", Handler: http.DefaultServeMux, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	admin := &http.Server{Addr: "localhost:9001", Handler: http.NotFoundHandler()}
	if err := grace.ListenAndServe(public, admin); err != nil {
		log.Fatal(err)
	}
}

// With options, and servers that listen on a socket of their own.
func ExampleUpgrader_ListenAndServe() {
	u, err := grace.New(grace.PIDFile("app.pid"), grace.DrainTimeout(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	admin := &http.Server{Addr: "unix:admin.sock", Handler: http.NotFoundHandler()}
	if err := u.ListenAndServe(&http.Server{Addr: ":9000"}, admin); err != nil {
		log.Fatal(err)
	}
}
