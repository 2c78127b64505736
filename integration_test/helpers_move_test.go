//go:build linux

package integration_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/julofinance/grace/v3/internal/proctest"
	"golang.org/x/sys/unix"
)

// socketOptions reads those of the socket in another process whose peer is addr.
func socketOptions(t testing.TB, pid int, peer net.Addr) string {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("pidfd_open: %v", err)
	}
	defer unix.Close(pidfd)
	fds, err := proctest.FDs(pid)
	if err != nil {
		t.Fatal(err)
	}
	for n := range fds {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		sa, err := unix.Getpeername(fd)
		if err != nil {
			continue
		}
		in, ok := sa.(*unix.SockaddrInet4)
		if !ok || fmt.Sprintf("%v:%d", net.IP(in.Addr[:]), in.Port) != peer.String() {
			continue
		}
		get := func(level, name int) int {
			v, err := unix.GetsockoptInt(fd, level, name)
			if err != nil {
				t.Fatalf("getsockopt: %v", err)
			}
			return v
		}
		return fmt.Sprintf("nodelay=%d keepalive=%d idle=%d interval=%d count=%d",
			get(unix.IPPROTO_TCP, unix.TCP_NODELAY), get(unix.SOL_SOCKET, unix.SO_KEEPALIVE),
			get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT))
	}
	t.Fatalf("process %d has no socket with the peer %v", pid, peer)
	return ""
}
