// Server is what the integration tests run and replace: its flags say what it
// listens on, its paths say what it knows of itself, and a file can make the
// next generation misbehave.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/oklog/run"
)

// version is changed by tests with -ldflags "-X main.version=2".
var version = "1"

// addrs collects flags of the form network=addr.
type addrs []string

func (a *addrs) String() string { return strings.Join(*a, " ") }

func (a *addrs) Set(s string) error {
	if !strings.Contains(s, "=") {
		return errors.New("want network=addr")
	}
	*a = append(*a, s)
	return nil
}

var (
	httpAddrs, rawAddrs, packetAddrs addrs

	pidFile   = flag.String("pidfile", "", "PID file")
	probation = flag.Duration("probation", time.Second, "probation")
	ready     = flag.Duration("ready", time.Minute, "ready timeout")
	drain     = flag.Duration("drain", 30*time.Second, "drain timeout")
	lame      = flag.Duration("lame", 0, "lame duck")
	lingers   = flag.Int("linger", 0, "how many processes may linger, for an hour")
	misbehave = flag.String("misbehave", "", "file that says how the next generation misbehaves; it removes the file")
	execPath  = flag.String("exec", "", "Executable option")
	reap      = flag.Bool("reap", false, "wait for every child that ends, whichever process has started it, as an init does")
	refuse    = flag.String("refuse", "", "file whose existence refuses an upgrade")
	stay      = flag.String("stay", "", "file as long as which exists the process does not exit after Done")
)

func main() {
	flag.Var(&httpAddrs, "http", "network=addr to serve HTTP on; may be repeated")
	flag.Var(&rawAddrs, "raw", "network=addr that answers a line with pid and generation, then echoes; may be repeated")
	flag.Var(&packetAddrs, "packet", "network=addr that answers each packet with pid, generation and the packet; may be repeated")
	flag.Var(&served, "serve", "wrapper,server,network=addr, see kinds.go; may be repeated")
	flag.Var(&servedFirst, "serve1", "-serve of the first generation alone")
	flag.Var(&servedLater, "serve2", "-serve of all later ones")
	flag.Parse()
	sandbox()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	dieWithTest()
	if *reap {
		reapAll()
	}
	err := serve()
	for *stay != "" {
		if _, err := os.Stat(*stay); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		slog.Error("server: exits", "err", err)
		os.Exit(1)
	}
}

// dieWithTest ends the process when standard input, a pipe that the test
// process holds open, has ended.
func dieWithTest() {
	if fi, err := os.Stdin.Stat(); err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
}

func serve() error {
	m := loadMisbehaviour(*misbehave)
	m.at("start")
	opts := []grace.Option{
		grace.Probation(*probation), grace.ReadyTimeout(*ready), grace.DrainTimeout(*drain), grace.LameDuck(*lame),
		grace.Linger(time.Hour, *lingers),
		grace.ReadyCheck(func(ctx context.Context) error { return m.check(ctx) }),
	}
	opts = append(opts, startOptions()...)
	opts = append(opts, socketOptions()...)
	opts = append(opts, exclusiveOptions()...)
	opts = append(opts, carryOptions(m)...)
	if *execPath != "" {
		opts = append(opts, grace.Executable(*execPath))
	}
	if *refuse != "" {
		opts = append(opts, grace.BeforeUpgrade(func(context.Context) error {
			if _, err := os.Stat(*refuse); err == nil {
				return errors.New("the file is there")
			}
			return nil
		}))
	}
	ctx, cancel := runContext()
	defer cancel()
	u, err := grace.New(opts...)
	if err != nil {
		return err
	}
	m.at("manifest")
	if m.mode == "stop" { // as if SIGTERM had come
		u.Shutdown(context.Background())
	}
	others, err := listen(u)
	if err != nil {
		u.Abort()
		<-u.Done()
		return err
	}
	m.at("listen")
	go m.afterReady(u)
	var g run.Group
	stop := func(error) { u.Abort() }
	g.Add(func() error { return u.Run(ctx) }, stop)
	for _, execute := range others {
		g.Add(execute, stop)
	}
	return g.Run()
}

// listen gives the servers to u, and gives what is to run besides.
func listen(u *grace.Upgrader) (others []func() error, err error) {
	if others, err = listenMore(u); err != nil {
		return nil, err
	}
	if err := listenKinds(u); err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: handlers(u)}
	for _, a := range httpAddrs {
		ln, err := listenOn(u, "http", a)
		if err != nil {
			return nil, err
		}
		u.HTTP(srv, ln)
	}
	for _, a := range rawAddrs {
		ln, err := listenOn(u, "raw", a)
		if err != nil {
			return nil, err
		}
		if err := makeBlocking(ln); err != nil {
			return nil, err
		}
		others = append(others, func() error { return serveRaw(u, ln) })
	}
	packets := packetAddrs
	for i := 0; i < len(packets); i++ {
		network, addr, _ := strings.Cut(packets[i], "=")
		pc, err := u.ListenPacket(network, addr)
		if err != nil {
			return nil, err
		}
		if i == 0 && u.HasParent() {
			for range *laterPackets {
				packets = append(packets, network+"="+pc.LocalAddr().String())
			}
		}
		fmt.Printf("listening packet %s %s pid=%d\n", network, pc.LocalAddr(), os.Getpid())
		if err := makeBlocking(pc); err != nil {
			return nil, err
		}
		others = append(others, func() error { return servePackets(u, pc) })
	}
	return others, nil
}

// listenOn listens and says where.
func listenOn(u *grace.Upgrader, how, a string) (net.Listener, error) {
	network, addr, _ := strings.Cut(a, "=")
	ln, err := u.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	fmt.Printf("listening %s %s %s pid=%d\n", how, network, ln.Addr(), os.Getpid())
	return ln, nil
}

func serveRaw(u *grace.Upgrader, ln net.Listener) error {
	var begun sync.WaitGroup // connections that have no answer yet
	defer begun.Wait()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			<-u.Done()
			return nil
		}
		if err != nil {
			return err
		}
		begun.Add(1)
		go func() {
			defer c.Close()
			_, err := fmt.Fprintf(c, "%d %d\n", os.Getpid(), u.Generation())
			begun.Done()
			if err == nil {
				io.Copy(c, c)
			}
		}()
	}
}

func servePackets(u *grace.Upgrader, pc net.PacketConn) error {
	b := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			<-u.Done()
			return nil
		}
		if err != nil {
			return err
		}
		pc.WriteTo(fmt.Appendf(nil, "%d %d %s", os.Getpid(), u.Generation(), b[:n]), from)
	}
}
