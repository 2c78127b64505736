//go:build linux

package integration_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A rightsClient sends messages with a descriptor, and remembers which process has
// answered.
type rightsClient struct {
	conn *net.UnixConn
	r    *bufio.Reader
	file *os.File
	text string // what is in the file
	sent int
	pid  int
}

func dialRights(t *testing.T, network, addr string, n int) *rightsClient {
	t.Helper()
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &rightsClient{conn: conn, r: bufio.NewReader(conn), text: fmt.Sprint("file", n)}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.file, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.file.Close() })
	return c
}

// ask sends a message, and wants the answer that says what the message was.
func (c *rightsClient) ask(text string) error {
	c.sent++
	msg := fmt.Sprint("message", c.sent)
	c.conn.SetDeadline(time.Now().Add(proctest.Limit))
	if _, _, err := c.conn.WriteMsgUnix([]byte(msg), syscall.UnixRights(int(c.file.Fd())), nil); err != nil {
		return err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("message %d: %w", c.sent, err)
	}
	pid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if rest != strings.TrimSpace(msg+" "+text) {
		return fmt.Errorf("message %d is answered with %q, want %q", c.sent, rest, msg+" "+text)
	}
	_, err = fmt.Sscan(pid, &c.pid)
	return err
}

// TestUnixConnMoves: however a connection of a protocol of its own is read from, it
// moves from where it waits, and ends there at a stop; no message and no descriptor
// is lost. So it does if the program has made it a blocking one.
func TestUnixConnMoves(t *testing.T) {
	for _, method := range []string{"Read", "ReadFrom", "ReadFromUnix", "ReadMsgUnix", "ReadMsgUnix, blocking"} {
		for _, network := range []string{"unix", "unixpacket"} {
			t.Run(method+"/"+network, func(t *testing.T) {
				t.Parallel()
				method, blocking, _ := strings.Cut(method, ", ")
				addr := filepath.Join(t.TempDir(), "s")
				args := []string{"-rights", method + "," + network + "=" + addr, "-drain", "1h", "-probation", "100ms"}
				if blocking != "" {
					args = append(args, "-blocking")
				}
				s := startServer(t, args...)
				const quiet, busy = 10, 3
				var clients []*rightsClient
				for i := range quiet + busy {
					clients = append(clients, dialRights(t, network, addr, i))
				}
				text := func(c *rightsClient) string {
					if method == "ReadMsgUnix" {
						return c.text
					}
					return "" // the kernel closes what the reader does not ask for
				}
				mustAsk := func(c *rightsClient, pid int) {
					t.Helper()
					if err := c.ask(text(c)); err != nil || c.pid != pid {
						t.Fatalf("process %d answers, want %d; error %v", c.pid, pid, err)
					}
				}
				old := s.Pid()
				for range 2 {
					for _, c := range clients {
						mustAsk(c, old)
					}
					if blocking != "" {
						proctest.WaitFor(t, proctest.Limit, "threads in a system call that blocks", func() bool { return inCall(old, syscall.SYS_RECVMSG) })
					}
					stop := make(chan struct{})
					var asking sync.WaitGroup
					for _, c := range clients[quiet:] {
						asking.Go(func() {
							for {
								if err := c.ask(text(c)); err != nil {
									t.Error(err)
									return
								}
								select {
								case <-stop:
									return
								default:
								}
							}
						})
					}
					s.Signal(old, syscall.SIGUSR2)
					s.WaitLine(fmt.Sprintf(`grace: drained" .* moved=%d finished=0 waited=0 cut=0`, len(clients)))
					s.WaitGone(old)
					close(stop)
					asking.Wait()
					old = s.WaitAlone()
					for _, c := range clients {
						mustAsk(c, old)
					}
				}
				s.Signal(old, syscall.SIGTERM)
				for _, c := range clients {
					if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
						t.Errorf("at the stop a client reads error %v, want EOF", err)
					}
				}
				s.WaitAllGone()
			})
		}
	}
}
