// Fasthttp is a program as it was written for the first version of grace and fasthttp.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/valyala/fasthttp/fasthttpadaptor"

	grace "github.com/julofinance/grace/compat/v1/fasthttp/v3"
	"github.com/julofinance/grace/v3/internal/load"
)

func main() {
	hport := flag.String("hport", "127.0.0.1:0", "what the configuration says")
	flag.Parse()
	go func() { // the test process is gone
		io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
	if err := grace.ServerFastHTTP(*hport, fasthttpadaptor.NewFastHTTPHandler(load.Handler())); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("ServerFastHTTP has returned pid=%d\n", os.Getpid())
}
