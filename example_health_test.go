package grace_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/julofinance/grace/v3"
)

// A version that starts, and answers with 500 or not at all, is rolled back.
func ExampleHealthCheck() {
	check := func(ctx context.Context, c *http.Client) error {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://localhost/healthz", nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	if err := grace.Serve(":9000", nil, grace.HealthCheck(check)); err != nil {
		log.Fatal(err)
	}
}

// The same for a protocol of one's own, on the listener that was asked for by these words.
func ExampleHealthCheckConn() {
	check := func(ctx context.Context, c net.Conn) error {
		fmt.Fprintln(c, "PING")
		answer, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && answer != "PONG\n" {
			err = fmt.Errorf("the answer to PING is %q", answer)
		}
		return err
	}
	u, err := grace.New(grace.HealthCheckConn("tcp", ":7000", check))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", ":7000")
	if err != nil {
		log.Fatal(err)
	}
	serve := func(net.Listener) error { return nil } // the program's
	u.Server(grace.Server{Listener: ln, Serve: serve})
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
