//go:build linux

// Package rpc runs upgrades of gRPC servers, alone and behind a cmux.
package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/julofinance/grace/v3"
	"github.com/julofinance/grace/v3/internal/proctest"
)

var library = grace.Serve // so that a cached result is stale when it changes

func TestMain(m *testing.M) {
	runtime.KeepAlive(library)
	proctest.Main(m)
}

// dial gives a client that tries nothing twice, but for what gRPC does by itself
// where the server has surely not seen the call.
func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func call(c *grpc.ClientConn, method string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Limit)
	defer cancel()
	v := new(wrapperspb.StringValue)
	err := c.Invoke(ctx, "/test.Clock/"+method, new(emptypb.Empty), v)
	return v.Value, err
}

func stream(c *grpc.ClientConn) (string, error) {
	const n = 20
	ctx, cancel := context.WithTimeout(context.Background(), 2*proctest.Limit)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{StreamName: "Ticks", ServerStreams: true}, "/test.Clock/Ticks")
	if err == nil {
		err = s.SendMsg(wrapperspb.Int32(n))
	}
	if err == nil {
		err = s.CloseSend()
	}
	if err != nil {
		return "", err
	}
	first := ""
	for i := 0; ; i++ {
		v := new(wrapperspb.StringValue)
		if err := s.RecvMsg(v); errors.Is(err, io.EOF) && i == n {
			return first, nil
		} else if err != nil {
			return "", fmt.Errorf("after %d of %d ticks: %w", i, n, err)
		}
		if first == "" {
			first = v.Value
		}
		if v.Value != first {
			return "", fmt.Errorf("a tick of process %s in a stream of %s", v.Value, first)
		}
	}
}

// A loop asks again and again, and knows which process has answered last.
type loop struct {
	name   string
	ask    func() (pid string, err error)
	last   atomic.Value
	n      atomic.Int64
	err    error
	failed atomic.Bool // err is set
}

// TestUpgrades: ten upgrades and three roll backs in between, and no call, no
// stream and no HTTP/1 request fails. Each drain ends by GOAWAY, without a cut.
func TestUpgrades(t *testing.T) {
	for _, how := range []string{"grpc", "cmux"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			die := filepath.Join(dir, "die")
			p := proctest.Start(t, proctest.Command{
				Path: proctest.Build(t, "./server"), Args: []string{"-how", how, "-die", die, "-pidfile", filepath.Join(dir, "pid")},
			})
			addr := p.WaitLine(`^listening (\S+)`)[1]
			p.WaitLine(`msg="grace: serving"`)
			pid := p.Pid()

			var loops []*loop
			for i := range 3 {
				c, s := dial(t, addr), dial(t, addr)
				loops = append(loops,
					&loop{name: fmt.Sprint("calls ", i), ask: func() (string, error) { return call(c, "Now") }},
					&loop{name: fmt.Sprint("streams ", i), ask: func() (string, error) { return stream(s) }})
			}
			if how == "cmux" {
				client := &http.Client{Transport: &http.Transport{}, Timeout: proctest.Limit}
				defer client.CloseIdleConnections()
				loops = append(loops, &loop{name: "HTTP/1", ask: func() (string, error) {
					// A POST whose body can't be sent twice is not tried again.
					resp, err := client.Post("http://"+addr+"/", "text/plain", io.MultiReader(bytes.NewReader([]byte("x"))))
					if err != nil {
						return "", err
					}
					defer resp.Body.Close()
					b, err := io.ReadAll(resp.Body)
					return string(b), err
				}})
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for _, l := range loops {
				wg.Go(func() {
					for ctx.Err() == nil && !l.failed.Load() {
						pid, err := l.ask()
						l.last.Store(pid)
						l.n.Add(1)
						if err != nil {
							l.err = err
							l.failed.Store(true) // after it, for those that look
						}
					}
				})
			}
			end := sync.OnceFunc(func() {
				cancel()
				wg.Wait()
				for _, l := range loops {
					t.Logf("%s: %d", l.name, l.n.Load())
					if l.err != nil {
						t.Errorf("%s: number %d has failed: %v", l.name, l.n.Load(), l.err)
					}
				}
			})
			defer end()
			// All are served by this process, by connections that are there.
			settled := func() {
				t.Helper()
				proctest.WaitFor(t, proctest.Limit, "all clients to be served by the new process", func() bool {
					for _, l := range loops {
						if l.last.Load() != fmt.Sprint(pid) && !l.failed.Load() {
							return false
						}
					}
					return true
				})
			}
			settled()
			want := "keepalive=1 idle=77 interval=7 count=5 user-timeout=12345"
			upgrades, backs := 0, 0
			for step := range 13 {
				if step == 1 || step == 5 || step == 9 {
					if err := os.WriteFile(die, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					backs++
					p.Signal(pid, syscall.SIGUSR2)
					proctest.WaitFor(t, proctest.Limit, "the roll back", func() bool { return p.Count(`msg="grace: rolled back`) == backs })
					if err := os.Remove(die); err != nil {
						t.Fatal(err)
					}
					// It accepts again, too.
					if got, err := call(dial(t, addr), "Now"); err != nil || got != fmt.Sprint(pid) {
						t.Fatalf("after roll back %d process %s answers, %v; want %d", backs, got, err, pid)
					}
					continue
				}
				old := pid
				p.Signal(old, syscall.SIGUSR2)
				p.WaitGone(old)
				pid = p.WaitAlone()
				upgrades++
				settled()
				if got, err := call(dial(t, addr), "Options"); err != nil || got != want {
					t.Errorf("after upgrade %d a connection has %s, %v; want %s", upgrades, got, err, want)
				}
			}
			end()
			if n := p.Count(`msg="grace: drained" .*cut=0`); n != 10 || upgrades != 10 {
				t.Errorf("%d upgrades, and %d drains without a cut; want 10", upgrades, n)
			}
			if n := p.Count(`^cmux pid=`); n > 0 {
				t.Errorf("cmux has failed %d times", n)
			}
		})
	}
}
