//go:build linux

// Server serves gRPC, alone or behind a cmux beside HTTP/1, and replaces itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/soheilhy/cmux"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/julofinance/grace/v3"
)

func main() {
	how := flag.String("how", "", "grpc or cmux")
	die := flag.String("die", "", "a file: where it is there, a process that was started by another dies when it is ready")
	pidFile := flag.String("pidfile", "", "PID file")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", os.Getpid()))
	u, err := grace.New(grace.PIDFile(*pidFile), grace.Probation(100*time.Millisecond), grace.DrainTimeout(time.Hour),
		grace.ListenConfig(net.ListenConfig{
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 77 * time.Second, Interval: 7 * time.Second, Count: 5},
			// As the README says: grpc-go sets it of a *net.TCPConn only.
			Control: func(_, _ string, c syscall.RawConn) (err error) {
				if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 12345) }); e != nil {
					return e
				}
				return err
			},
		}))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s pid=%d\n", ln.Addr(), os.Getpid())
	var s server
	switch *how {
	case "grpc":
		u.Server(grace.Server{Listener: ln, Serve: s.serve, Shutdown: s.shutdown})
	case "cmux":
		m := cmux.New(ln)
		rpc := m.MatchWithWriters(cmux.HTTP2MatchHeaderFieldSendSettings("content-type", "application/grpc"))
		rest := m.Match(cmux.Any())
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d", os.Getpid())
		})}
		u.Server(grace.Server{Listener: rpc, Serve: s.serve, Shutdown: s.shutdown})
		u.HTTP(srv, rest)
		go func() {
			if err := m.Serve(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, cmux.ErrListenerClosed) && !errors.Is(err, cmux.ErrServerClosed) {
				fmt.Printf("cmux pid=%d: %v\n", os.Getpid(), err)
			}
		}()
	default:
		log.Fatalf("-how %q is unknown", *how)
	}
	if _, err := os.Stat(*die); err == nil {
		if err := u.Ready(); err != nil {
			log.Fatal(err)
		}
		os.Exit(3)
	}
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A server is one *grpc.Server after the other.
type server struct{ now atomic.Pointer[grpc.Server] }

func (s *server) serve(ln net.Listener) error {
	g := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Hour, Timeout: 20 * time.Second}))
	g.RegisterService(&clock, nil)
	s.now.Store(g)
	return g.Serve(ln)
}

func (s *server) shutdown(context.Context) error {
	if g := s.now.Load(); g != nil {
		g.GracefulStop()
	}
	return nil
}

var clock = grpc.ServiceDesc{
	ServiceName: "test.Clock",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Now", Handler: now}, {MethodName: "Options", Handler: options}},
	Streams:     []grpc.StreamDesc{{StreamName: "Ticks", Handler: ticks, ServerStreams: true}},
}

func now(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new(emptypb.Empty)); err != nil {
		return nil, err
	}
	return pid(), nil
}

// options gives those of the caller's connection.
func options(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new(emptypb.Empty)); err != nil {
		return nil, err
	}
	p, _ := peer.FromContext(ctx)
	for fd := range 1024 {
		sa, err := unix.Getpeername(fd)
		v4, ok := sa.(*unix.SockaddrInet4)
		if err != nil || !ok || fmt.Sprintf("%v:%d", net.IP(v4.Addr[:]), v4.Port) != p.Addr.String() {
			continue
		}
		get := func(level, opt int) int { v, _ := unix.GetsockoptInt(fd, level, opt); return v }
		return wrapperspb.String(fmt.Sprintf("keepalive=%d idle=%d interval=%d count=%d user-timeout=%d",
			get(unix.SOL_SOCKET, unix.SO_KEEPALIVE), get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL),
			get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT), get(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT))), nil
	}
	return nil, fmt.Errorf("no descriptor is connected to %v", p.Addr)
}

// ticks sends as many ticks as were asked for, one each 10 ms.
func ticks(_ any, stream grpc.ServerStream) error {
	n := new(wrapperspb.Int32Value)
	if err := stream.RecvMsg(n); err != nil {
		return err
	}
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for range n.Value {
		select {
		case <-t.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		if err := stream.SendMsg(pid()); err != nil {
			return err
		}
	}
	return nil
}

func pid() *wrapperspb.StringValue { return wrapperspb.String(fmt.Sprint(os.Getpid())) }
