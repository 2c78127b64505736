//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/internal/proctest"
)

// A front is a tool in front of a server, with its configuration: of that, %[1]s is
// a directory, %[2]s and %[3]s are the addresses without and with TLS, %[4]s is the file
// with the certificate and its key, and %[5]s the server. It inherits the listening
// sockets as descriptors 3 and 4.
type front struct {
	name, program string
	args          []string // %s: the file with the configuration
	env           string
	config        string
	signal        syscall.Signal // reloads
	streams       bool           // passes the end of one half of a stream on
}

// Each keeps connections on both sides, for any number of requests, and sends nothing
// twice. The rest is as it comes.
var fronts = []front{
	{name: "haproxy", program: "haproxy", args: haproxyArgs, config: fmt.Sprintf(haproxyConfig, ""), signal: syscall.SIGUSR2, streams: true},
	{name: "haproxy*", program: "haproxy", args: haproxyArgs, config: fmt.Sprintf(haproxyConfig, "option idle-close-on-response"), signal: syscall.SIGUSR2, streams: true},
	{name: "nginx", program: "nginx", args: []string{"-e", "stderr", "-c", "%s"}, env: "NGINX=3;4;", config: nginxConfig, signal: syscall.SIGHUP},
}

var haproxyArgs = []string{"-W", "-f", "%s"} // a master and a worker

// The %s is for one option more; it leaves the rest to startProxy.
const haproxyConfig = `
global
	hard-stop-after 1m
defaults
	mode http
	retries 0
	no option redispatch
	timeout connect 1m
	timeout client 1m
	timeout server 1m
	timeout tunnel 1m
	%s
frontend front
	bind fd@3
	bind fd@4 ssl crt %%[4]s alpn h2,http/1.1
	default_backend app
backend app
	server app %%[5]s
`

const nginxConfig = `
daemon off;
user root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000;
	upstream app {
		server %[5]s;
		keepalive 64;
		keepalive_requests 1000000;
	}
	server {
		listen %[2]s;
		listen %[3]s ssl http2;
		ssl_certificate %[4]s;
		ssl_certificate_key %[4]s;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream off;
		}
	}
}
`

// find gives the program's path: on Debian it is where users do not look.
func (f front) find() (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, f.program)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing: install the package %[1]s", f.program)
}

// version is the first line of what the program says of its version.
func (f front) version(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "-v").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// A proxy is a running front: a master, which stays, and its workers.
type proxy struct {
	front
	addr, tlsAddr string
	master        int // the group of all
}

func (b *benchmark) startProxy(f front, path, backend, cert string) (*proxy, error) {
	dir, err := os.MkdirTemp(b.dir, f.program)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path)
	p := &proxy{front: f}
	for _, addr := range []*string{&p.addr, &p.tlsAddr} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		socket, err := ln.(*net.TCPListener).File()
		if err != nil {
			return nil, err
		}
		defer socket.Close()
		*addr = ln.Addr().String()
		cmd.ExtraFiles = append(cmd.ExtraFiles, socket)
	}
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, fmt.Appendf(nil, f.config, dir, p.addr, p.tlsAddr, cert, backend), 0o600); err != nil {
		return nil, err
	}
	for _, arg := range f.args {
		cmd.Args = append(cmd.Args, strings.ReplaceAll(arg, "%s", config))
	}
	cmd.Env = b.env
	if f.env != "" {
		cmd.Env = append(slices.Clone(b.env), f.env)
	}
	cmd.Stdout, cmd.Stderr = b.errors, b.errors
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%v: %w", cmd, err)
	}
	p.master = cmd.Process.Pid
	cmd.Process.Release() // see end
	return p, nil
}

// workers gives the pids of those that live.
func (p *proxy) workers() (pids []int) {
	for _, s := range proctest.Children(p.master) {
		if !s.Dead() {
			pids = append(pids, s.Pid)
		}
	}
	return pids
}

// reload makes the master read its configuration again, and waits until the workers
// from before are gone, and others are there.
func (p *proxy) reload(ctx context.Context) error {
	before := p.workers()
	if err := syscall.Kill(p.master, p.signal); err != nil {
		return fmt.Errorf("reload process %d: %w", p.master, err)
	}
	old := func(pid int) bool { return slices.Contains(before, pid) }
	what := fmt.Sprintf("the end of the workers %v", before)
	return until(ctx, 2*time.Minute, what, func() (bool, error) { // more than each limit of theirs
		if s, ok := proctest.ReadStat(p.master); !ok || s.Dead() {
			return false, fmt.Errorf("process %d has ended", p.master)
		}
		now := p.workers()
		return len(now) > 0 && !slices.ContainsFunc(now, old), nil
	})
}

// end ends the master and its workers.
func (p *proxy) end() {
	syscall.Kill(p.master, syscall.SIGTERM)
	limit := time.AfterFunc(patience, func() { syscall.Kill(-p.master, syscall.SIGKILL) })
	defer limit.Stop()
	(&process{group: p.master}).reap(0)
}
