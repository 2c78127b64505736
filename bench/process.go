//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/bench/server"
)

// The kinds of servers; each but plain is a main package below server. Plain is net/http
// alone, in the binary of ours: how a linker lays out the same code makes a server up to a
// twentieth faster or slower, and is not what is measured.
const (
	plain     = "plain"
	ours      = "grace"
	tableflip = "tableflip"
)

var kinds = []string{plain, ours, tableflip}

// build builds the servers into dir.
func build(ctx context.Context, dir string) error {
	for _, kind := range kinds[1:] {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, kind), "github.com/julofinance/grace/v3/bench/server/"+kind)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

// A process is a running server, whichever generation that is now.
type process struct {
	kind, addr string
	tlsAddr    string      // see server.LoadVariable
	trust      *tls.Config // nil: it speaks no TLS on addr
	pid        int         // of the generation that serves
	group      int         // of all generations
	lines      chan string
	in         *os.File // its end is that of every generation
}

// A generation is what a process says of itself.
type generation struct {
	pid            int
	addr, tlsAddr  string
	begun, serving int64 // main, and when it could answer
}

// startFor starts a server for such connections.
func (b *benchmark) startFor(kind string, how connections) (*process, error) {
	if how != keptTLS && how != moveTLS {
		return b.start(kind)
	}
	cert, trust, err := b.certificate()
	if err != nil {
		return nil, err
	}
	env := []string{server.TLSVariable + "=" + cert}
	if how == moveTLS {
		env = append(env, server.MoveTLSVariable+"=1")
	}
	p, err := b.start(kind, env...)
	if err == nil {
		p.trust = trust
	}
	return p, err
}

// start starts a server. All its generations write to one pipe.
func (b *benchmark) start(kind string, env ...string) (*process, error) {
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		in.Close()
		return nil, err
	}
	b.pidFiles++
	pidFile := filepath.Join(b.dir, fmt.Sprintf("%s-%d.pid", kind, b.pidFiles))
	binary := kind
	if kind == plain {
		binary, env = ours, slices.Concat(env, []string{server.PlainVariable + "=1"})
	}
	path := filepath.Join(b.binaries, binary)
	p := &process{kind: kind, lines: make(chan string, 16), in: in}
	p.group, err = syscall.ForkExec(path, []string{path, pidFile}, &syscall.ProcAttr{
		Env: slices.Concat(b.env, env), Files: []uintptr{stdin.Fd(), stdout.Fd(), b.errors.Fd()}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	stdin.Close()
	stdout.Close() // or its other end would never say that all have ended
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		out.Close()
		close(p.lines)
	}()
	g, err := p.serving(b.ctx)
	if err == nil {
		p.addr, p.tlsAddr = g.addr, g.tlsAddr
		err = p.alone(b.ctx)
	}
	if err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// line waits for the next line of whichever generation.
func (p *process) line(ctx context.Context) (string, error) {
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case s, ok := <-p.lines:
		if !ok {
			return "", fmt.Errorf("%s: all processes have ended", p.kind)
		}
		return s, nil
	case <-ctx.Done():
		return "", ctx.Err()
	case <-limit.C:
		return "", fmt.Errorf("%s: process %d, or its successor, says nothing for a minute", p.kind, p.pid)
	}
}

// serving waits until a new generation can answer.
func (p *process) serving(ctx context.Context) (g generation, err error) {
	s, err := p.line(ctx)
	if err != nil {
		return g, err
	}
	if _, err := fmt.Sscanf(s, "serving %d %s %d %d", &g.pid, &g.addr, &g.begun, &g.serving); err != nil {
		return g, fmt.Errorf("%s says %q: %w", p.kind, s, err)
	}
	g.addr, g.tlsAddr, _ = strings.Cut(g.addr, ",")
	p.pid = g.pid
	return g, nil
}

// alone waits until the generation before is gone, and reaps it.
func (p *process) alone(ctx context.Context) error {
	s, err := p.line(ctx)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("alone %d", p.pid); s != want {
		return fmt.Errorf("%s says %q instead of %q", p.kind, s, want)
	}
	p.reap(syscall.WNOHANG)
	return nil
}

func (p *process) reap(flags int) {
	for {
		pid, err := syscall.Wait4(-p.group, nil, flags, nil)
		if err != syscall.EINTR && (err != nil || pid <= 0) {
			return
		}
	}
}

// end ends every generation.
func (p *process) end() {
	p.in.Close()
	limit := time.AfterFunc(patience, func() { syscall.Kill(-p.group, syscall.SIGKILL) })
	defer limit.Stop()
	for range p.lines { // until none has it any more
	}
	p.reap(0)
}

// floor gives the microseconds from a fork until the first line of main: what no
// upgrade can do without.
func (b *benchmark) floor(kind string) (float64, error) {
	out, stdout, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	defer stdout.Close()
	path := filepath.Join(b.binaries, kind)
	begun := server.Now()
	pid, err := syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{
		Env: append([]string{server.FloorVariable + "=1"}, b.env...), Files: []uintptr{0, stdout.Fd(), b.errors.Fd()},
	})
	if err != nil {
		return 0, err
	}
	stdout.Close()
	text, err := io.ReadAll(out)
	var ended int64
	if err == nil {
		_, err = fmt.Sscanf(string(text), "main %d", &ended)
	}
	for {
		if _, werr := syscall.Wait4(pid, nil, 0, nil); werr != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return 0, fmt.Errorf("%s says %q: %w", kind, text, err)
	}
	return micros(ended - begun), nil
}

func micros(ns int64) float64 { return float64(ns) / 1e3 }

// environment is that of the servers: nothing of it is a supervisor's or ours.
func environment() (env []string) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "GRACE_") && !strings.HasPrefix(name, "LISTEN_") && name != "NOTIFY_SOCKET" && !strings.HasPrefix(name, "BENCH_") {
			env = append(env, kv)
		}
	}
	return env
}
