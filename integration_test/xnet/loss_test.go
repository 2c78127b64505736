//go:build linux

package xnet

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

// TestPostsAreNotLost: however HTTP/2 was set up, no POST fails of clients that send none a
// second time, through a relay of 2 ms each way, while the server replaces itself ten times.
func TestPostsAreNotLost(t *testing.T) {
	const (
		clients, workers = 2, 4 // each client has workers; the server takes 7 streams of a connection
		upgrades         = 10
	)
	for _, how := range hows {
		t.Run(how, func(t *testing.T) {
			p, addr := start(t, how)
			relay, err := load.NewRelay("tcp", addr, 2*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			defer relay.Close()
			var answers, failed atomic.Int64
			var ended atomic.Bool
			var work sync.WaitGroup
			defer work.Wait()
			defer ended.Store(true)
			for range clients {
				client := http2test.NewClient(func() (net.Conn, error) {
					c, err := net.DialTimeout("tcp", relay.Addr(), proctest.Limit)
					if err == nil && how == "configure" {
						c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
					}
					return c, err
				})
				client.Limit = proctest.Limit
				defer client.Close()
				for range workers {
					work.Go(func() {
						for !ended.Load() {
							got, err := client.Post("/", "one ", "after ", "another")
							if err == nil && got != "one after another" {
								err = fmt.Errorf("answered %q", got)
							}
							if err != nil {
								failed.Add(1)
								t.Errorf("a POST has failed: %v", err)
								return
							}
							answers.Add(1)
						}
					})
				}
			}
			// meet waits until each client has connected once more, and so is served by the
			// process that serves now, and until there were answers.
			met, seen := 0, int64(0)
			meet := func() {
				t.Helper()
				proctest.WaitFor(t, proctest.Limit, "connections and answers", func() bool {
					return relay.Accepted() >= met+clients && answers.Load() >= seen+20 || failed.Load() > 0
				})
				met, seen = relay.Accepted(), answers.Load()
			}
			meet()
			pid := p.Pid()
			for n := 0; n < upgrades && failed.Load() == 0; n++ {
				old := pid
				p.Signal(old, syscall.SIGUSR2)
				meet()
				p.WaitGone(old)
				mustCutNone(t, p, old)
				pid = p.WaitAlone()
			}
			ended.Store(true)
			work.Wait()
			t.Logf("%d answers over %d connections, %d failed", answers.Load(), relay.Accepted(), failed.Load())
		})
	}
}
