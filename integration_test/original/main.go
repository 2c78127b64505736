// Original is a program as it was written for the first version of the package.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/julofinance/grace/v3/compat/v1"
)

var (
	listen  = flag.Bool("listen", false, "serve no HTTP: answer with the pid, then echo")
	hport   = flag.String("hport", "127.0.0.1:0", "what the configuration says")
	run     = flag.String("run", "", "call this `function` in place of ServeWithConfig: Run or RunWithErr")
	timeout = flag.Duration("timeout", 0, "of that function")
)

func main() {
	flag.Parse()
	fmt.Printf("port %q\n", grace.GetListenPort(*hport))
	http.HandleFunc("/pid", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, os.Getpid()) })
	go func() { // end with the test, whose pipe this is
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
	if *listen {
		echo()
		return
	}
	switch *run {
	case "Run":
		grace.Run(*hport, *timeout, nil)
		fmt.Println("Run has returned")
		return
	case "RunWithErr":
		fmt.Printf("RunWithErr has returned: %v\n", grace.RunWithErr(*hport, *timeout, nil))
		return
	}
	if err := grace.ServeWithConfig(*hport, grace.Config{}, nil); err != nil {
		log.Fatal(err)
	}
}

func echo() {
	l, err := grace.Listen(*hport)
	if errors.Is(err, grace.ErrConfigTest) {
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", l.Addr())
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			fmt.Fprintln(c, os.Getpid())
			io.Copy(c, c)
		}()
	}
}
