// Server is a DNS server of github.com/miekg/dns, which replaces itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/oklog/run"

	"github.com/julofinance/grace/v3"
)

func main() {
	network := flag.String("network", "udp", "udp, udp4 or udp6")
	addr := flag.String("addr", "127.0.0.1:0", "address to listen on, by UDP; by TCP on the same one")
	work := flag.Duration("work", 0, "how long an answer takes")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(time.Second), grace.DrainTimeout(time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	pc, err := u.ListenPacket(*network, *addr)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp"+(*network)[len("udp"):], *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s %s pid=%d\n", pc.LocalAddr(), ln.Addr(), os.Getpid())
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(*work)
		a := new(dns.Msg)
		a.SetReply(q)
		if len(q.Question) == 1 {
			a.Answer = append(a.Answer, &dns.TXT{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
				Txt: []string{fmt.Sprint(os.Getpid())},
			})
		}
		w.WriteMsg(a) // what goes wrong is the client's to notice
	})
	var g run.Group
	g.Add(u.Actor())
	g.Add(overUDP(pc, handler))
	g.Add(overTCP(u, ln, handler))
	if err := g.Run(); err != nil {
		log.Fatal(err)
	}
}

// overUDP needs no more than the packet conn: this process reads while it is the one that
// serves, and answers what it has read.
func overUDP(pc net.PacketConn, handler dns.Handler) (execute func() error, interrupt func(error)) {
	srv := &dns.Server{PacketConn: pc, Handler: handler}
	return func() error {
		err := srv.ActivateAndServe()
		if errors.Is(err, net.ErrClosed) { // this process ends
			return nil
		}
		return err
	}, func(error) { srv.Shutdown() }
}

// overTCP drains connections, and serves again if an upgrade is rolled back.
func overTCP(u *grace.Upgrader, ln net.Listener, handler dns.Handler) (execute func() error, interrupt func(error)) {
	var now atomic.Pointer[dns.Server]
	return u.Server(grace.Server{
		Listener: ln,
		Serve: func(ln net.Listener) error {
			srv := &dns.Server{Listener: ln, Handler: handler}
			now.Store(srv)
			return srv.ActivateAndServe()
		},
		Shutdown: func(ctx context.Context) error {
			if srv := now.Load(); srv != nil {
				return srv.ShutdownContext(ctx)
			}
			return nil
		},
	})
}
