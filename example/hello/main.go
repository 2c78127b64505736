// Hello is the smallest server: kill -USR2 replaces it.
//
//	go build -o hello ./example/hello && GRACE_PIDFILE=hello.pid ./hello
//	curl localhost:9000/foo/bar
//	kill -USR2 $(cat hello.pid)
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/julofinance/grace/v3"
)

func main() {
	http.HandleFunc("/foo/bar", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from process %d\n", os.Getpid())
	})
	if err := grace.Serve(":9000", nil); err != nil {
		log.Fatal(err)
	}
}
