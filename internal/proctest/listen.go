//go:build linux

package proctest

import (
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Listens gives the addresses of the TCP listeners of a process, as the kernel has
// them, see proc_pid_net(5): sorted.
func Listens(pid int) ([]netip.AddrPort, error) {
	fds, err := FDs(pid)
	if err != nil {
		return nil, err
	}
	sockets := map[string]bool{}
	for _, what := range fds {
		sockets[what] = true
	}
	var all []netip.AddrPort
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line) // number, local, remote, state and so on; the tenth is the inode
			const listening = "0A"
			if len(f) < 10 || f[3] != listening || !sockets["socket:["+f[9]+"]"] {
				continue
			}
			addr, port, _ := strings.Cut(f[1], ":")
			ip, err := hex.DecodeString(addr)
			n, err2 := strconv.ParseUint(port, 16, 16)
			if err != nil || err2 != nil || len(ip)%4 != 0 {
				continue
			}
			for word := range slices.Chunk(ip, 4) { // each in the machine's order
				slices.Reverse(word)
			}
			a, _ := netip.AddrFromSlice(ip)
			all = append(all, netip.AddrPortFrom(a, uint16(n)))
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all), nil
}
