// Run puts the cases of h2spec to a server of HTTP/2, and prints the result of each.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

func main() {
	addr := flag.String("addr", "", "the server's address")
	overTLS := flag.Bool("tls", false, "it speaks TLS")
	timeout := flag.Duration("timeout", 2*time.Second, "how long an answer may take")
	sections := flag.String("sections", "", "the cases, separated by commas; all if empty")
	flag.Parse()
	out := os.Stdout
	os.Stdout = os.Stderr // h2spec prints what it is doing
	host, port, err := net.SplitHostPort(*addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "run: -addr:", err)
		os.Exit(2)
	}
	c := &config.Config{Host: host, Path: "/", Timeout: *timeout, MaxHeaderLen: 4000, Strict: true, TLS: *overTLS, Insecure: true}
	c.Port, _ = strconv.Atoi(port)
	if *sections != "" {
		c.Sections = strings.Split(*sections, ",")
	}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		print(out, group)
	}
}

func print(out *os.File, group *spec.TestGroup) {
	for _, list := range [][]*spec.TestCase{group.Tests, group.StrictTests} {
		for _, tc := range list {
			if tc.Result == nil {
				continue
			}
			result := "passed"
			switch {
			case tc.Result.Skipped:
				result = "skipped"
			case tc.Result.Failed:
				result = "failed"
			}
			fmt.Fprintf(out, "%s/%d\t%s\t%s\n", group.ID(), tc.Result.Sequence, result, tc.Desc)
		}
	}
	for _, g := range group.Groups {
		print(out, g)
	}
}
