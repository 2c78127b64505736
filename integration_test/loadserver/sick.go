package main

import (
	"bufio"
	"context"
	cryptotls "crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/julofinance/grace/v3"
)

var (
	sickFile = flag.String("sick", "", "file that says how a process that finds it at its start is sick: 500, hang, deadlock or stop")
	check    = flag.String("check", "", "health check: a URL, or network=addr of a listener")
	backlog  = flag.Int("backlog", 0, "length of the queue of each TCP listener; 0: the kernel's")
)

// sickness is what the file said when this process began.
var sickness string

func readSickness() {
	if *sickFile != "" {
		b, _ := os.ReadFile(*sickFile)
		sickness = string(b)
	}
}

// sickHandler is h in a version that may be sick.
func sickHandler(h http.Handler) http.Handler {
	switch sickness {
	case "500":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "this version is sick", http.StatusInternalServerError)
		})
	case "hang":
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { select {} })
	case "stop": // at the first request, if it comes before sickAfterReady
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			stopSelf()
			select {} // another thread may have got the signal
		})
	}
	return h
}

// sickListener is ln in a version that may be sick.
func sickListener(ln net.Listener) net.Listener {
	if sickness == "deadlock" {
		return deadlocked{ln}
	}
	return ln
}

// A deadlocked listener waits for what never comes before it accepts.
type deadlocked struct{ net.Listener }

func (deadlocked) Accept() (net.Conn, error) { select {} }

// sickAfterReady is called in a goroutine of its own.
func sickAfterReady(u *grace.Upgrader) {
	if sickness == "stop" && u.Ready() == nil {
		stopSelf()
	}
}

// healthOptions are the check. It is impatient as long as the file names a sickness by which
// the new process never answers: the others are told by its answer, however long that takes.
func healthOptions() []grace.Option {
	if *check == "" {
		return nil
	}
	bound := func(ctx context.Context) (context.Context, context.CancelFunc) {
		if b, err := os.ReadFile(*sickFile); err == nil && string(b) != "500" {
			return context.WithTimeout(ctx, 300*time.Millisecond)
		}
		return context.WithCancel(ctx)
	}
	if network, addr, ok := strings.Cut(*check, "="); ok && !strings.Contains(network, ":") {
		return []grace.Option{grace.HealthCheckConn(network, addr, func(ctx context.Context, c net.Conn) error {
			ctx, cancel := bound(ctx)
			defer cancel()
			if end, ok := ctx.Deadline(); ok {
				c.SetDeadline(end)
			}
			fmt.Fprint(c, "GET /sized?n=1 HTTP/1.1\r\nHost: health\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return err
			}
			return is200(resp)
		})}
	}
	return []grace.Option{grace.HealthCheck(func(ctx context.Context, c *http.Client) error {
		ctx, cancel := bound(ctx)
		defer cancel()
		if strings.HasPrefix(*check, "https:") {
			pem, err := os.ReadFile(*certs + "/cert.pem")
			if err != nil {
				return err
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(pem)
			c.Transport.(*http.Transport).TLSClientConfig = &cryptotls.Config{RootCAs: roots}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, *check, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		return is200(resp)
	})}
}

func is200(resp *http.Response) error {
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("it says " + resp.Status)
	}
	return nil
}
