// Unix is an HTTP server on a unix socket. The socket's file stays where it is
// over upgrades, and so do the connections.
//
//	go build -o unix ./example/unix && GRACE_PIDFILE=unix.pid ./unix -path ./unix.sock
//	curl --unix-socket ./unix.sock http://localhost/
//	kill -USR2 $(cat unix.pid)
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/julofinance/grace/v3"
)

func main() {
	path := flag.String("path", "unix.sock", "the socket's `file`")
	flag.Parse()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from process %d\n", os.Getpid())
	})
	if err := grace.Serve("unix:"+*path, nil); err != nil {
		log.Fatal(err)
	}
}
