//go:build linux

package integration_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	httpload "github.com/julofinance/grace/v3/internal/load"
	"github.com/julofinance/grace/v3/internal/proctest"
)

// TestLosslessNginx upgrades behind nginx, which keeps connections to us and
// sends nothing twice, under wrk.
func TestLosslessNginx(t *testing.T) {
	wrk := needTool(t, "wrk", "wrk")
	for _, way := range []string{"plain", "limited"} {
		t.Run(way, func(t *testing.T) {
			s := startLoadServer(t, way)
			front := startNginx(t, s.addr[way])
			run := startHTTPLoad(t, httpload.Config{Addr: front, Kinds: kinds(1,
				httpload.KeepAlive, httpload.Connect, httpload.Pipelined, httpload.Expect, httpload.Head,
				httpload.NotModified, httpload.Chunked, httpload.Slow, httpload.Upload)})
			waitAnswers(t, run, 1)
			done := runWrk(t, wrk, "http://"+front+"/sized?n=1000")
			n := upgradeUntil(t, s, done)
			mustLoseNone(t, run, n, true) // towards nginx, that is
			mustCutNone(t, s)
			if moved := s.drained("moved"); (moved > 0) != (way == "plain") {
				t.Errorf("%d connections of nginx were moved", moved)
			}
		})
	}
}

// TestLosslessWrk is wrk without nginx, so all its connections move.
func TestLosslessWrk(t *testing.T) {
	s := startLoadServer(t, "plain")
	done := runWrk(t, needTool(t, "wrk", "wrk"), "http://"+s.addr["plain"]+"/sized?n=1000")
	upgradeUntil(t, s, done)
	mustCutNone(t, s)
	if s.drained("moved") == 0 {
		t.Error("no connection was moved")
	}
}

// upgradeUntil upgrades until wrk has ended, and checks what that says.
func upgradeUntil(t testing.TB, s *loadServer, done <-chan []byte) (n int) {
	t.Helper()
	for {
		s.upgrade()
		n++
		select {
		case out := <-done:
			m := regexp.MustCompile(`(\d+) requests in`).FindSubmatch(out)
			if m == nil || atoi(t, string(m[1])) == 0 || bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
				t.Errorf("wrk, over %d upgrades, says:\n%s", n, out)
			}
			return n
		default:
		}
	}
}

// runWrk runs wrk for some seconds; its output comes when it has ended.
func runWrk(t testing.TB, path, url string) <-chan []byte {
	t.Helper()
	length := "8s"
	switch {
	case testing.Short():
		length = "2s"
	case lossLong:
		length = "4m"
	}
	cmd := exec.Command(path, "-t", "1", "-c", "12", "-d", length, "--timeout", "20s", url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan []byte, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := cmd.Wait(); err != nil {
			fmt.Fprintln(&out, err)
		}
		done <- out.Bytes()
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	return done
}

// startNginx puts nginx in front of addr, and gives its own address. It takes
// over a socket that we have bound, so that no port is taken twice.
func startNginx(t testing.TB, addr string) string {
	t.Helper()
	path := needTool(t, "nginx", "nginx")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, ln.Addr(), addr), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-p", dir, "-c", config, "-e", filepath.Join(dir, "early.log"))
	cmd.Env = []string{"NGINX=3;"}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // its worker with it
		select {
		case <-ended:
		case <-time.After(proctest.Limit):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			t.Errorf("nginx has not stopped within %v", proctest.Limit)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, "error.log")); t.Failed() {
			t.Logf("nginx says:\n%s%s", &out, b)
		}
	})
	proctest.WaitFor(t, proctest.Limit, "nginx", func() bool {
		_, err := os.Stat(filepath.Join(dir, "nginx.pid"))
		return err == nil
	})
	return ln.Addr().String()
}

// What this nginx needs: a directory, its own address, and that of the server.
const nginxConfig = `
daemon off;
user root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log warn;
events { worker_connections 512; }
http {
	map $status $bad { ~^[23] 0; default 1; }
	log_format bad '$request: $status, by the server: $upstream_status';
	access_log %[1]s/error.log bad if=$bad;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000;
	upstream app {
		server %[3]s;
		keepalive 16;
		keepalive_requests 1000000;
	}
	server {
		listen %[2]s;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream off;
			proxy_request_buffering off;
			proxy_buffering off;
		}
	}
}
`
