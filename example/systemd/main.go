// Hello is the server for the unit files in this directory; see docs/systemd.md.
// It takes a socket that systemd has for its address, or opens it.
package main

import (
	"cmp"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/julofinance/grace/v3"
)

func main() {
	log.SetFlags(0) // the journal has the time
	http.HandleFunc("/foo/bar", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from process %d\n", os.Getpid())
	})
	// The PID file is the one that the unit names in GRACE_PIDFILE.
	if err := grace.Serve(cmp.Or(os.Getenv("HELLO_ADDR"), ":9000"), nil); err != nil {
		log.Fatal(err)
	}
}
