// Grpc is a gRPC server that replaces itself: unary calls and streams.
//
//	cd example/grpc && go build -o clock . && GRACE_PIDFILE=clock.pid ./clock
//	kill -USR2 $(cat clock.pid)
//
// It has three methods of example.Clock: Now, Ticks, and Echo, which streams both
// ways. At an upgrade the old process tells its clients by GOAWAY to make their next
// calls on a new connection, which the new process accepts; gRPC's clients do so by
// themselves. Calls and streams that run are finished by the old process, which
// lingers for them, an hour at most.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/julofinance/grace/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	addr := flag.String("addr", "localhost:9002", "`host:port` to listen on")
	probation := flag.Duration("probation", time.Second, "how long the old version stands by")
	flag.Parse()
	u, err := grace.New(grace.Probation(*probation), grace.DrainTimeout(time.Minute), grace.Linger(time.Hour, 10))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	var s server
	u.Server(grace.Server{Listener: ln, Serve: s.serve, Shutdown: s.shutdown})
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A server serves with one *grpc.Server after the other: after GracefulStop one
// can't serve again, and serve is called again if an upgrade is rolled back.
type server struct{ now atomic.Pointer[grpc.Server] }

func (s *server) serve(ln net.Listener) error {
	g := grpc.NewServer()
	g.RegisterService(&clock, nil)
	s.now.Store(g)
	return g.Serve(ln)
}

// shutdown sends GOAWAY and waits. It does not cut anything off when the context
// ends: after a roll back the streams may go on, and Upgrader.Server closes what
// is left when the drain's time is up.
func (s *server) shutdown(context.Context) error {
	if g := s.now.Load(); g != nil {
		g.GracefulStop()
	}
	return nil
}

// What protoc would generate of
//
//	service Clock {
//	  rpc Now(google.protobuf.Empty) returns (google.protobuf.StringValue);
//	  rpc Ticks(google.protobuf.Int32Value) returns (stream google.protobuf.StringValue);
//	  rpc Echo(stream google.protobuf.StringValue) returns (stream google.protobuf.StringValue);
//	}
var clock = grpc.ServiceDesc{
	ServiceName: "example.Clock",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Now", Handler: now}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Ticks", Handler: ticks, ServerStreams: true},
		{StreamName: "Echo", Handler: echo, ServerStreams: true, ClientStreams: true},
	},
}

func now(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	if err := decode(new(emptypb.Empty)); err != nil {
		return nil, err
	}
	return tick(), nil
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
		if err := stream.SendMsg(tick()); err != nil {
			return err
		}
	}
	return nil
}

// echo answers each message with the pid and the message, until the client ends.
func echo(_ any, stream grpc.ServerStream) error {
	for {
		v := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprintf("%d %s", os.Getpid(), v.Value))); err != nil {
			return err
		}
	}
}

func tick() *wrapperspb.StringValue {
	return wrapperspb.String(fmt.Sprintf("%d %s", os.Getpid(), time.Now().Format(time.RFC3339Nano)))
}
