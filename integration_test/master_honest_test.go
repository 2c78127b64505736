//go:build linux

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// Variables that are malformed or not true: the server says which one, serves
// nothing, and exits.
func TestDishonestMaster(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listening, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	connected, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	packet, err := packets.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	plain, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	master := fmt.Sprintf("EINHORN_MASTER_PID=%d", os.Getpid())

	// Descriptor 3 listens, 4 is connected, 5 is a packet socket, 6 a file, 7 is closed.
	for _, c := range []struct{ env, want string }{
		{"EINHORN_FDS=three", `EINHORN_FDS="three": "three" is not a number`},
		{"EINHORN_FDS=-1", `descriptor -1 is below zero`},
		{"EINHORN_FDS=4", `descriptor 4 is a socket that does not listen`},
		{"EINHORN_FDS=5", `descriptor 5 is a socket that does not listen`},
		{"EINHORN_FDS=6", `EINHORN_FDS="6": descriptor 6 is not a socket`},
		{"EINHORN_FDS=7", `EINHORN_FDS="7": descriptor 7 is closed`},
		{"EINHORN_FDS=99999999999999999999", `is not a number`},
		{"EINHORN_FDS=3 SOCKETMASTER_PID=x", `SOCKETMASTER_PID="x": it is not a process id`},
		{"EINHORN_FDS=3 SOCKETMASTER_PID=-1", `SOCKETMASTER_PID="-1": it is not a process id`},
		{"EINHORN_FDS=3 SOCKETMASTER_PID=2147483646", `SOCKETMASTER_PID="2147483646": that process has not started this one`},
		{"EINHORN_FDS=3,3 " + master, `EINHORN_FDS="3,3"`},
		{"EINHORN_FD_COUNT=1 EINHORN_FD_0=7 " + master, `EINHORN_FD_0="7": descriptor 7 is closed`},
		{"EINHORN_FD_COUNT=2 EINHORN_FD_0=3 " + master, `EINHORN_FD_COUNT="2": there are 1 variables`},
		{"EINHORN_FD_COUNT=1 EINHORN_FD_0=3 EINHORN_FD_1=4 " + master, `EINHORN_FD_COUNT="1": there are 2 variables`},
		{"EINHORN_FD_COUNT=2 EINHORN_FD_0=3 EINHORN_FD_1=3 " + master, `EINHORN_FD_1="3": descriptor 3 is named twice`},
		{"EINHORN_FD_COUNT=2 EINHORN_FD_0=3 EINHORN_FD_2=4 " + master, `there is no EINHORN_FD_1`},
		{"EINHORN_FD_COUNT=-1 " + master, `EINHORN_FD_COUNT="-1"`},
		{"EINHORN_FD_COUNT=many " + master, `EINHORN_FD_COUNT="many"`},
		{"EINHORN_FD_COUNT=1 EINHORN_FD_0=3 EINHORN_MASTER_PID=1000000000", `EINHORN_MASTER_PID="1000000000": that process has not started this one`},
		{"EINHORN_FD_COUNT=1 EINHORN_FD_0=3 EINHORN_SOCK_FD=6 " + master, `EINHORN_SOCK_FD="6": descriptor 6 is not a connected socket`},
		{"SERVER_STARTER_PORT=" + port, `is not addr=descriptor`},
		{"SERVER_STARTER_PORT=" + port + "=7", `descriptor 7 is closed`},
		{"SERVER_STARTER_PORT=" + port + "=x", `"x" is not a number`},
		{"SERVER_STARTER_PORT=1=3", `descriptor 3 is not bound to 1 but to 127.0.0.1:` + port},
		{"SERVER_STARTER_PORT=/a/path=3", `descriptor 3 is not bound to /a/path`},
		{"SERVER_STARTER_PORT=" + port + "=3;" + port + "=3", `descriptor 3 is named twice`},
		{"SERVER_STARTER_PORT=" + port + "=4", `descriptor 4 is a socket that does not listen`},
	} {
		t.Run(c.env, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), proctest.Limit)
			defer cancel()
			cmd := exec.CommandContext(ctx, proctest.Build(t, serverPackage), "-http", "tcp="+listener.Addr().String())
			cmd.ExtraFiles = []*os.File{listening, connected, packet, plain}
			cmd.Env = append(os.Environ(), strings.Fields(c.env)...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("it ended with %v; want exit status 1", err)
			}
			got := strings.ReplaceAll(out.String(), `\"`, `"`)
			if !strings.Contains(got, c.want) || !strings.Contains(got, "can't be trusted") {
				t.Errorf("it said %q; want %q", got, c.want)
			}
			if strings.Contains(got, "grace: serving") {
				t.Errorf("it has served: %q", got)
			}
		})
	}
}

// The variables of two masters: the first of the order counts. Here its variables name
// another process, which is not signalled, since it does not hold the socket.
func TestMasterOrder(t *testing.T) {
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	m := startUnder(t, "tcp", func(args []string) proctest.Command {
		args[1] = "tcp=" + addr
		c := socketmaster(t, "tcp://"+addr, "exec %s", "-start", "50")(args)
		c.Env = []string{"SERVER_STARTER_PORT=" + port + "=3"}
		return c
	})
	m.WaitLine(`it has to do the upgrades.* master=start_server`)
	if got, err := m.get("/env"); err != nil || strings.Contains(got, "EINHORN") || strings.Contains(got, "STARTER") {
		t.Errorf("the environment has variables of a master, error %v:\n%s", err, got)
	}
	m.Signal(m.pid(), syscall.SIGUSR2)
	m.WaitLine(fmt.Sprintf(`upgrade failed.* pid %d can't be proven to be the start_server`, os.Getpid()))
	m.stop(syscall.SIGTERM)
}
