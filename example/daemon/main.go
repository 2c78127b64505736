//go:build unix

// Daemon shows what an existing daemon needs to replace itself, if it keeps its
// own servers, signals and run.Group: the lines that are marked.
//
//	go build -o daemon ./example/daemon && GRACE_PIDFILE=daemon.pid ./daemon
//	curl localhost:9003; curl localhost:9004/healthz; echo hi | nc -u -w1 localhost 9005
//	kill -HUP $(cat daemon.pid)  # this daemon upgrades on SIGHUP
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/julofinance/grace/v3"
	"github.com/oklog/run"
)

func main() {
	httpAddr := flag.String("http", "localhost:9003", "`host:port` of the service")
	adminAddr := flag.String("admin", "localhost:9004", "`host:port` for operators")
	udpAddr := flag.String("udp", "localhost:9005", "`host:port` for packets")
	flag.Parse()
	if err := daemon(*httpAddr, *adminAddr, *udpAddr); err != nil {
		log.Fatal(err)
	}
}

func daemon(httpAddr, adminAddr, udpAddr string) error {
	u, err := grace.New(grace.NoSignals()) // 1: no signals, they are ours
	if err != nil {
		return err
	}
	ln, err := u.Listen("tcp", httpAddr) // 2: u.Listen in place of net.Listen
	if err != nil {
		return err
	}
	admin, err := u.Listen("tcp", adminAddr)
	if err != nil {
		return err
	}
	packets, err := u.ListenPacket("udp", udpAddr) // 3
	if err != nil {
		return err
	}
	fmt.Println("listening", ln.Addr(), admin.Addr(), packets.LocalAddr())

	var g run.Group
	g.Add(u.Actor())                                         // 4: ready now; and ends the group when it is time
	g.Add(u.HTTP(&http.Server{Handler: service()}, ln))      // 5: in place of srv.Serve(ln) and srv.Shutdown
	g.Add(u.HTTP(&http.Server{Handler: operators()}, admin)) // 6
	g.Add(func() error { return echo(packets) }, func(error) { packets.Close() })
	g.Add(signals(u)) // 7: what to do on a signal
	return g.Run()
}

func service() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from process %d\n", os.Getpid())
	})
}

func operators() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "process %d is well\n", os.Getpid())
	})
	return mux
}

// echo answers each packet. Reads wait until this process is ready, and end
// with net.ErrClosed when it is done: no error then, nor the group's.
func echo(conn net.PacketConn) error {
	b := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		conn.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), b[:n]), from)
	}
}

// signals upgrades on SIGHUP and stops on SIGTERM and SIGINT.
func signals(u *grace.Upgrader) (execute func() error, interrupt func(error)) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	end := make(chan struct{})
	return func() error {
		for {
			select {
			case s := <-c:
				if s == syscall.SIGHUP {
					go u.Upgrade(context.Background())
				} else {
					go u.Shutdown(context.Background())
				}
			case <-end:
				return nil
			}
		}
	}, func(error) { close(end) }
}
