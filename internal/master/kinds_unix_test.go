//go:build unix

package master

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/sockets"
	"golang.org/x/sys/unix"
)

// passed gives a descriptor as a master passes it: not close-on-exec.
func passed(t *testing.T, of interface{ File() (*os.File, error) }) int {
	t.Helper()
	f, err := of.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(n, true)
	t.Cleanup(func() { unix.Close(n) })
	return n
}

// passedTCP gives that of a TCP listener, and its port.
func passedTCP(t *testing.T) (fd int, port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return passed(t, l.(*net.TCPListener)), port
}

// TestMastersVariables: what is not true is an error that names the variable, and each
// variable is taken out of the environment.
func TestMastersVariables(t *testing.T) {
	tcp, port := passedTCP(t)
	other, otherPort := passedTCP(t)
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	udp := passed(t, p.(*net.UDPConn))
	type env map[string]string
	for _, c := range []struct {
		name string
		look func() (*Master, error)
		env  env
		want string // in the error
	}{
		{"no address", startServerMaster, env{"SERVER_STARTER_PORT": "80"}, `"80" is not addr=descriptor`},
		{"no number", startServerMaster, env{"SERVER_STARTER_PORT": "80=x"}, `"x" is not a number`},
		{"another port", startServerMaster, env{"SERVER_STARTER_PORT": fmt.Sprintf("%s=%d", otherPort, tcp)}, "is not bound to " + otherPort},
		{"twice", startServerMaster, env{"SERVER_STARTER_PORT": fmt.Sprintf("%s=%d;%s=%d", port, tcp, port, tcp)}, "named twice"},
		{"closed", startServerMaster, env{"SERVER_STARTER_PORT": "80=99999"}, "99999"},
		{"socketmaster's is a word", socketmasterMaster, env{"EINHORN_FDS": "three"}, `"three" is not a number`},
		{"socketmaster's is below zero", socketmasterMaster, env{"EINHORN_FDS": "-1"}, "below zero"},
		{"socketmaster's does not listen", socketmasterMaster, env{"EINHORN_FDS": fmt.Sprint(udp)}, "does not listen"},
		{"einhorn's count", einhornMaster, env{"EINHORN_FD_COUNT": "many"}, "not a number of descriptors"},
		{"einhorn's count below zero", einhornMaster, env{"EINHORN_FD_COUNT": "-1"}, "not a number of descriptors"},
		{"einhorn gives fewer", einhornMaster, env{"EINHORN_FD_COUNT": "2", "EINHORN_FD_0": fmt.Sprint(tcp)}, "there are 1 variables"},
		{"einhorn leaves one out", einhornMaster, env{"EINHORN_FD_COUNT": "2", "EINHORN_FD_0": fmt.Sprint(tcp), "EINHORN_FD_2": fmt.Sprint(other)}, "there is no EINHORN_FD_1"},
		{"einhorn's does not listen", einhornMaster, env{"EINHORN_FD_COUNT": "1", "EINHORN_FD_0": fmt.Sprint(udp)}, "does not listen"},
		{"an old einhorn's", einhornMaster, env{"EINHORN_FDS": fmt.Sprintf("%d %d", tcp, tcp)}, "named twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, value := range c.env {
				t.Setenv(name, value)
			}
			for _, fd := range []int{tcp, other, udp} { // each look marks what it takes
				unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
			}
			m, err := c.look()
			if !errors.Is(err, sockets.ErrMaster) || m != nil || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Fatalf("%v, %v; want ErrMaster with %q", m, err, c.want)
			}
			if !strings.Contains(err.Error(), "EINHORN_FD") && !strings.Contains(err.Error(), "SERVER_STARTER_PORT") {
				t.Errorf("%v names no variable", err)
			}
			for name := range c.env {
				if v, ok := os.LookupEnv(name); ok {
					t.Errorf("%s=%q is still in the environment", name, v)
				}
			}
		})
	}
}

// TestNoMaster: what another program has set, or nothing, is none.
func TestNoMaster(t *testing.T) {
	for name, look := range map[string]func() (*Master, error){"socketmaster": socketmasterMaster, "start_server": startServerMaster, "einhorn": einhornMaster} {
		for _, variable := range []string{"EINHORN_FDS", "SERVER_STARTER_PORT", "EINHORN_FD_COUNT", "EINHORN_MASTER_PID"} {
			t.Setenv(variable, "") // put back after the test
			os.Unsetenv(variable)
		}
		if m, err := look(); m != nil || err != nil {
			t.Errorf("%s without its variables: %v, %v", name, m, err)
		}
	}
	t.Setenv("EINHORN_FDS", "3")
	if m, err := einhornMaster(); m != nil || err != nil || os.Getenv("EINHORN_FDS") != "3" {
		t.Errorf("einhorn with socketmaster's variable: %v, %v; EINHORN_FDS=%q", m, err, os.Getenv("EINHORN_FDS"))
	}
}

// TestIsBoundTo: what start_server calls a socket, and what the kernel does.
func TestIsBoundTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, c := range []struct {
		network, bound, name string
		want                 bool
	}{
		{"tcp", "0.0.0.0:8080", "8080", true},
		{"tcp", "127.0.0.1:8080", "localhost:8080", true},
		{"tcp", "[::]:8080", "[::]:8080", true},
		{"tcp", "0.0.0.0:8080", "80", false},
		{"tcp", "0.0.0.0:8080", "8081", false},
		{"unix", path, path, true},
		{"unix", path, path + "2", false},
		{"tcp", "no address", "no address", false},
	} {
		if got := isBoundTo(manifest.Entry{Network: c.network, Bound: c.bound}, c.name); got != c.want {
			t.Errorf("isBoundTo(%s %s, %q) = %v", c.network, c.bound, c.name, got)
		}
	}
}
