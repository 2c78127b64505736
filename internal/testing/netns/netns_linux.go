package netns

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/julofinance/grace/v3/internal/testing/wait"
)

const variable = "TEST_IN_NETWORK_NAMESPACE"

// Enter runs the test once more, in a process with a network namespace of its own whose
// loopback interface has these addresses, such as 2001:db8::1/64, besides ::1/128. There
// Enter reports true, and the test goes on. Here it reports false when that process has
// ended: the test has failed as it has there, and should return. It is to be called once
// in a test, before anything else; a test that the machine does not let run is skipped,
// but fails where CI is set.
func Enter(t *testing.T, addrs ...string) bool {
	t.Helper()
	if os.Getenv(variable) == t.Name() {
		if err := setUp(addrs); err != nil {
			t.Fatalf("set up the loopback interface: %v", err)
		}
		// The kernel makes an address usable a moment after it was added.
		for _, addr := range addrs {
			host := netip.MustParsePrefix(addr).Addr()
			if host.IsLinkLocalUnicast() {
				host = host.WithZone("lo")
			}
			wait.Until(t, host.String()+" on the loopback interface", func() bool {
				c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
				if err == nil {
					c.Close()
				}
				return err == nil
			})
		}
		return true
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(t.Name()), "/", "$/^") + "$"
	args := []string{"-test.run", pattern, "-test.v=" + map[bool]string{true: "true", false: "false"}[testing.Verbose()]}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("a network namespace can't be made: %v", err)
		}
		t.Skipf("a network namespace can't be made: %v", err)
	}
	err = cmd.Wait()
	if text := strings.TrimSpace(out.String()); err != nil {
		t.Errorf("in a network namespace: %v\n%s", err, text)
	} else if testing.Verbose() {
		t.Logf("in a network namespace:\n%s", text)
	}
	return false
}

func setUp(addrs []string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return os.NewSyscallError("SIOCSIFFLAGS", err)
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		p, err := netip.ParsePrefix(addr)
		if err != nil {
			return err
		}
		if p.Addr().Is4() {
			return &net.AddrError{Err: "the loopback interface has 127.0.0.0/8 by itself", Addr: addr}
		}
		req := struct { // struct in6_ifreq of linux/ipv6.h
			addr   [16]byte
			prefix uint32
			index  int32
		}{p.Addr().As16(), uint32(p.Bits()), int32(lo.Index)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return os.NewSyscallError("SIOCSIFADDR "+addr, errno)
		}
	}
	return nil
}
