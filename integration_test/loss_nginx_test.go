//go:build linux

package integration_test

import (
	"bytes"
	"fmt"
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
			stop := runWrk(t, wrk, "http://"+front+"/sized?n=1000")
			n := variantRounds()
			s.upgrades(n)
			stop()
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
	stop := runWrk(t, needTool(t, "wrk", "wrk"), "http://"+s.addr["plain"]+"/sized?n=1000")
	s.upgrades(variantRounds())
	stop()
	mustCutNone(t, s)
	if s.drained("moved") == 0 {
		t.Error("no connection was moved")
	}
}

// runWrk runs wrk until stop, which checks what it says: an answer to each
// request, and each with a good status.
func runWrk(t testing.TB, path, url string) (stop func()) {
	t.Helper()
	cmd := exec.Command(path, "-t", "1", "-c", "12", "-d", "1h", "--timeout", "20s", url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	return func() {
		t.Helper()
		cmd.Process.Signal(syscall.SIGINT) // it sums up
		var err error
		select {
		case err = <-ended:
		case <-time.After(proctest.Limit):
			t.Fatalf("wrk has not stopped within %v", proctest.Limit)
		}
		m := regexp.MustCompile(`(\d+) requests in`).FindSubmatch(out.Bytes())
		if err != nil || m == nil || atoi(t, string(m[1])) == 0 || bytes.Contains(out.Bytes(), []byte("Non-2xx")) || bytes.Contains(out.Bytes(), []byte("Socket errors")) {
			t.Errorf("wrk: error %v; it says:\n%s", err, &out)
			return
		}
		t.Logf("wrk: %s requests, none failed", m[1])
	}
}

// startNginx puts nginx in front of addr, and gives its own address.
func startNginx(t testing.TB, addr string) string {
	t.Helper()
	return startNginxAs(t, nginxHTTP, addr)
}

// startNginxAs has in what way it speaks to addr. It takes over a socket that we have
// bound, so that no port is taken twice.
func startNginxAs(t testing.TB, way, addr string) string {
	t.Helper()
	path := needTool(t, "nginx", "nginx")
	socket, own := boundSocket(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig+way+nginxConfigEnd, dir, own, addr), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-p", dir, "-c", config, "-e", filepath.Join(dir, "early.log"))
	cmd.Env = []string{"NGINX=3;"}
	cmd.ExtraFiles = []*os.File{socket}
	front{name: "nginx", cmd: cmd, says: func() string {
		b, _ := os.ReadFile(filepath.Join(dir, "error.log"))
		return string(b)
	}}.start(t)
	proctest.WaitFor(t, proctest.Limit, "nginx", func() bool {
		_, err := os.Stat(filepath.Join(dir, "nginx.pid"))
		return err == nil
	})
	return own
}

// Ways in which nginx speaks to the server. gRPC is HTTP/2, a request at a time on a
// connection that is kept.
const (
	nginxHTTP = `
		listen %[2]s;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream off;
			proxy_request_buffering off;
			proxy_buffering off;
		}`
	nginxHTTPS = `
		listen %[2]s;
		location / {
			proxy_pass https://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream off;
			proxy_ssl_protocols TLSv1.3;
			proxy_ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;
			proxy_ssl_name grace;
			proxy_ssl_server_name on;
		}`
	nginxGRPC = `
		listen %[2]s http2;
		location / {
			grpc_pass grpc://app;
			grpc_next_upstream off;
		}`
	nginxGRPCS = `
		listen %[2]s http2;
		location / {
			grpc_pass grpcs://app;
			grpc_next_upstream off;
		}`
)

// What this nginx needs: a directory, its own address, and that of the server. How it speaks to that
// stands between.
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
		keepalive_timeout 1h;
	}
	server {`

const nginxConfigEnd = `
	}
}
`
