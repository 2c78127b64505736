//go:build linux

package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// underStrace is the command of a program under strace, and of what it starts.
func underStrace(t *testing.T, options []string, program string, args ...string) proctest.Command {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI needs strace: %v", err)
		}
		t.Skipf("system calls are seen, and made to fail, with strace: %v", err)
	}
	options = append([]string{"-f", "--seccomp-bpf", "-qq", "-e", "signal=none"}, options...)
	return proctest.Command{Path: strace, Args: append(append(options, program), args...)}
}

// traced starts a moveserver under strace, and gives what that has written when
// the server has ended.
func traced(t *testing.T, calls string, args ...string) (addr string, end func() string) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	server := proctest.Build(t, moveServerPackage)
	p := proctest.Start(t, underStrace(t, []string{"-e", "trace=" + calls, "-o", trace}, server, args...))
	addr = p.WaitLine(`^listening 1 (\S+)`)[1]
	p.WaitLine(`msg="grace: serving"`)
	return addr, func() string {
		t.Helper()
		conn, err := net.DialTimeout("tcp", addr, proctest.Limit)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /stop HTTP/1.1\r\nHost: grace\r\n\r\n")
		p.WaitAllGone()
		b, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// copied adds up what a system call has moved.
func copied(trace, call string) (n int64) {
	for _, m := range regexp.MustCompile(`(?m)`+call+`\(.*\) += (\d+)$|<\.\.\. `+call+` resumed>.*\) += (\d+)$`).FindAllStringSubmatch(trace, -1) {
		var k int64
		fmt.Sscan(m[1]+m[2], &k)
		n += k
	}
	return n
}

func TestServeFileUsesSendfile(t *testing.T) {
	const size = 3 << 20
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("grace!\n\n", size/8)), 0o644); err != nil {
		t.Fatal(err)
	}
	addr, end := traced(t, "sendfile", "-file", file)
	conn, err := net.DialTimeout("tcp", addr, proctest.Limit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(proctest.Limit))
	fmt.Fprint(conn, "GET /file HTTP/1.1\r\nHost: grace\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
		t.Fatalf("got %d bytes and %v, want %d", n, err, size)
	}
	// net/http itself sends the first 512 bytes, to see what they are.
	if n := copied(end(), "sendfile"); n < size-512 {
		t.Errorf("sendfile has sent %d bytes, want %d", n, size-512)
	}
}

func TestCopyBetweenConnectionsUsesSplice(t *testing.T) {
	const size = 1 << 20
	addr, end := traced(t, "splice")
	source, sink := rawClient(t, addr, "/pair?source"), rawClient(t, addr, "/pair?sink")
	go func() {
		source.Write([]byte(strings.Repeat("x", size)))
		source.(*net.TCPConn).CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, sink); n != size || err != nil {
		t.Fatalf("got %d bytes and %v, want %d", n, err, size)
	}
	// Through a pipe: every byte twice.
	if n := copied(end(), "splice"); n < 2*size*9/10 {
		t.Errorf("splice has moved %d bytes, want %d", n, 2*size)
	}
}

// rawClient hijacks a connection by asking for path, and reads the answer's end.
func rawClient(t *testing.T, addr, path string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, proctest.Limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(proctest.Limit))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: grace\r\n\r\n", path)
	line := make([]byte, len("ok\n"))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != "ok\n" {
		t.Fatalf("got %q and %v, want ok", line, err)
	}
	return conn
}
