// Fasthttp is a server of fasthttp that replaces itself and loses no request.
//
//	cd example/fasthttp && go build -o fast . && GRACE_PIDFILE=fast.pid ./fast
//	curl localhost:9006
//	kill -USR2 $(cat fast.pid)
//
// fasthttp's own Shutdown is not called. It closes keep-alive connections that
// are idle at that moment, while a client may be sending, with CloseOnShutdown
// too, and waits without end for one that has not sent its first request yet.
// Here idle connections move to the new process; see conn.go.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/julofinance/grace/v3"
	"github.com/valyala/fasthttp"
)

func main() {
	addr := flag.String("addr", "localhost:9006", "`host:port` to listen on")
	flag.Parse()
	u, err := grace.New()
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	srv := &fasthttp.Server{Handler: sayClose(hello), ConnState: connState}
	u.Server(grace.Server{
		Listener: listener{ln},
		Serve:    func(ln net.Listener) error { return srv.Serve(ln) },
		Protocol: "http/1.1",
	})
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func hello(ctx *fasthttp.RequestCtx) {
	fmt.Fprintf(ctx, "hello from process %d\n", os.Getpid())
}
