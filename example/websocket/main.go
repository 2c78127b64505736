// Websocket is a WebSocket server that replaces itself: it answers each message
// with its pid and the message.
//
//	cd example/websocket && go build -o ws . && GRACE_PIDFILE=ws.pid ./ws
//	kill -USR2 $(cat ws.pid)
//
// A WebSocket has a state in the process that serves it, so it does not move.
// The old process serves its own until it drains, and says goodbye then: with close code
// 1012, "service restart". Clients connect again, to the new process. With -stay they are
// served until they leave, an hour at most: the old process lingers, and the new one may be
// upgraded meanwhile.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"
	"github.com/julofinance/grace/v3"
)

// goodbyeTimeout is how long a client may take to answer a goodbye.
const goodbyeTimeout = 5 * time.Second

func main() {
	addr := flag.String("addr", "localhost:9007", "`host:port` to listen on")
	stay := flag.Bool("stay", false, "serve old clients until they leave")
	flag.Parse()
	opts := []grace.Option{grace.DrainTimeout(time.Minute)}
	if *stay {
		opts = append(opts, grace.Linger(time.Hour, 10))
	}
	u, err := grace.New(opts...)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	u.HTTP(&http.Server{Handler: echo(*stay)}, ln)
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func echo(stay bool) http.HandlerFunc {
	var upgrader websocket.Upgrader
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // it has answered
		}
		defer c.Close()
		var leaving <-chan struct{} // nil: never
		if !stay {
			leaving = grace.Draining(r.Context())
		}
		left := make(chan struct{})
		defer close(left)
		go func() {
			select {
			case <-leaving:
				goodbye(c)
			case <-left:
			}
		}()
		for {
			kind, msg, err := c.ReadMessage()
			if err != nil {
				return
			}
			if c.WriteMessage(kind, fmt.Appendf(nil, "%d %s", os.Getpid(), msg)) != nil {
				return
			}
		}
	}
}

// goodbye asks the client to leave. Nothing can be answered after that: what it
// sends meanwhile is for it to send again.
func goodbye(c *websocket.Conn) {
	deadline := time.Now().Add(goodbyeTimeout)
	c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseServiceRestart, ""), deadline)
	c.SetReadDeadline(deadline)
}
