//go:build linux

package serve

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/sockets"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// TestBlockingDescriptor: a program that makes a connection a blocking one, and
// reads or writes, does not keep its process from ending when the time is up.
func TestBlockingDescriptor(t *testing.T) {
	for _, how := range []string{"HTTP, hijacked", "HTTP, in a handler", "Server"} {
		for _, what := range []string{"Read", "Write"} {
			t.Run(how+"/"+what, func(t *testing.T) {
				u, ln := newProcess(t, cutsOffAfter(time.Millisecond))
				use := map[string]func(net.Conn){"Read": blockInRead, "Write": blockInWrite}[what]
				var execute func() error
				switch how {
				case "Server":
					execute = u.Other(ForeignServer{Listener: ln, Serve: func(ln net.Listener) error {
						c, err := ln.Accept()
						if err != nil {
							return err
						}
						defer c.Close()
						use(c)
						return net.ErrClosed
					}})
				default:
					type key struct{}
					execute = u.HTTP(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						c := r.Context().Value(key{}).(net.Conn)
						if how == "HTTP, hijacked" {
							var err error
							if c, _, err = http.NewResponseController(w).Hijack(); err != nil {
								t.Error(err)
								return
							}
							defer c.Close()
						}
						use(c)
					}), ConnContext: func(ctx context.Context, c net.Conn) context.Context {
						return context.WithValue(ctx, key{}, c)
					}}, ln)
				}
				u.run(t, execute)
				c := dialSolo(t, ln.Addr().String())
				// A body that does not come: net/http begins to read behind a handler's
				// back only when the body is read, and would be in the handler's way.
				io.WriteString(c, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n")
				wait.Until(t, "a blocking system call", func() bool { return wait.InSyscall("serve.blockIn" + what) })
				u.askStop()
				wait.For(t, u.Done(), "Done")
				wait.Until(t, "its end", func() bool { return !wait.InSyscall("serve.blockIn" + what) })
			})
		}
	}
}

func blockInRead(c net.Conn) {
	makeBlocking(c)
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func blockInWrite(c net.Conn) {
	makeBlocking(c)
	for b := make([]byte, 1<<20); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func makeBlocking(c net.Conn) {
	raw, err := c.(*sockets.TCPConn).SyscallConn()
	if err != nil {
		panic(err)
	}
	raw.Control(func(fd uintptr) { unix.SetNonblock(int(fd), false) })
}
