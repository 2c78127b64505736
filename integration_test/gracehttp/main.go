// Command gracehttp serves load's handler on two addresses and, if it is given a
// certificate, over TLS on a third, as a program written for facebookgo's gracehttp
// would.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/julofinance/grace/v3/compat/gracehttp"
	"github.com/julofinance/grace/v3/internal/load"
)

func main() {
	cert := flag.String("cert", "", "certificate and key in one `file`")
	refuse := flag.String("refuse", "", "refuse upgrades while this `file` is there")
	withOptions := flag.Bool("options", false, "use ServeWithOptions")
	logger := flag.Bool("logger", false, "use SetLogger")
	h2 := flag.Bool("h2", false, "name h2 in NextProtos")
	gracehttp.RegisterFlags(nil)
	flag.Parse()
	if *logger {
		gracehttp.SetLogger(log.New(os.Stdout, "logger: ", 0))
	}
	servers := []*http.Server{
		{Addr: "127.0.0.1:0", Handler: load.Handler()},
		{Addr: "localhost:0", Handler: load.Handler()},
	}
	if *cert != "" {
		pair, err := tls.LoadX509KeyPair(*cert, *cert)
		if err != nil {
			log.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}}
		if *h2 {
			config.NextProtos = []string{"h2", "http/1.1"}
		}
		servers = append(servers, &http.Server{Addr: "127.0.0.1:0", Handler: load.Handler(), TLSConfig: config})
	}
	var err error
	if *withOptions {
		err = gracehttp.ServeWithOptions(servers, gracehttp.PreStartProcess(func() error {
			fmt.Printf("prestart pid=%d\n", os.Getpid())
			if _, err := os.Stat(*refuse); err == nil {
				return errors.New("refused")
			}
			return nil
		}))
	} else {
		err = gracehttp.Serve(servers...)
	}
	fmt.Printf("returned pid=%d: %v\n", os.Getpid(), err)
	if err != nil {
		os.Exit(1)
	}
}
