//go:build linux

package integration_test

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// A lossClient asks again and again, through a relay of its own, until it is to end.
type lossClient struct {
	name     string
	relay    *httpload.Relay
	least    int // how many answers show that it is at work
	answered atomic.Int64
	ended    atomic.Bool
	work     sync.WaitGroup
	after    func() (note string) // is called when its work is done

	mu   sync.Mutex
	lost []string
	stop []func()
}

// newLossClient makes one whose way to the server is the relay's.
func newLossClient(t testing.TB, name string, s *loadServer, way string) *lossClient {
	t.Helper()
	relay, err := httpload.NewRelay("tcp", s.addr[way], netDelay)
	if err != nil {
		t.Fatal(err)
	}
	c := &lossClient{name: name, relay: relay, least: 10, after: func() string { return "" }}
	t.Cleanup(func() {
		c.end()
		relay.Close()
		c.work.Wait()
	})
	return c
}

// end lets the client have the answers that it waits for, and no more.
func (c *lossClient) end() {
	c.ended.Store(true)
	c.mu.Lock()
	stop := c.stop
	c.stop = nil
	c.mu.Unlock()
	for _, f := range stop {
		f()
	}
}

func (c *lossClient) hasLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lost) > 0
}

func (c *lossClient) lose(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = append(c.lost, why)
}

// again lets n goroutines call f until the client is to end, or has lost something: f
// returns how many answers there were, and what is wrong.
func (c *lossClient) again(n int, f func() (answers int, err error)) {
	for range n {
		c.work.Go(func() {
			for !c.ended.Load() && !c.hasLost() {
				answers, err := f()
				c.answered.Add(int64(answers))
				if err != nil {
					c.lose(err.Error())
				}
			}
		})
	}
}

// runs starts a program that asks until stop is called, and calls line with each line that
// it prints. That it ends before is a loss, and likewise what it says on its standard error.
func (c *lossClient) runs(t testing.TB, cmd *exec.Cmd, stop func(), line func(string)) {
	t.Helper()
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	late := time.AfterFunc(math.MaxInt64, func() { cmd.Process.Kill() }) // until stop
	c.mu.Lock()
	c.stop = append(c.stop, func() {
		late.Reset(proctest.Limit)
		stop()
	})
	c.mu.Unlock()
	c.work.Go(func() {
		lines := bufio.NewReader(out)
		for {
			text, err := lines.ReadString('\n')
			if err != nil {
				break // half a line is of one that was told to stop, or the error below says more
			}
			line(strings.TrimSuffix(text, "\n"))
		}
		err := cmd.Wait()
		switch {
		case !c.ended.Load():
			c.lose(fmt.Sprintf("%s has ended by itself: %v\n%s", cmd.Path, err, &said))
		case !late.Stop():
			c.lose(fmt.Sprintf("%s has not ended within %v\n%s", cmd.Path, proctest.Limit, &said))
		case said.Len() > 0:
			c.lose(fmt.Sprintf("%s says: %s", cmd.Path, &said))
		}
	})
}

// reportLosses ends the clients, and fails the test if one has lost a request.
func reportLosses(t testing.TB, clients []*lossClient) {
	t.Helper()
	for _, c := range clients {
		c.end()
	}
	for _, c := range clients {
		c.work.Wait()
		note := c.after()
		t.Logf("%-20s %7d answers, %5d connections, %d requests lost%s", c.name, c.answered.Load(), c.relay.Accepted(), len(c.lost), note)
		for _, why := range c.lost[:min(3, len(c.lost))] {
			t.Errorf("%s: lost: %s", c.name, why)
		}
	}
}

// command is one that ends with the test process.
func command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = proctest.Limit
	return cmd
}
