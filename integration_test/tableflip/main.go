// Command tableflip uses compat/tableflip as it is told to: each process of it
// listens on a unix socket named after its pid in the directory of its first
// argument, takes one command a connection, and answers with what came of it.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/compat/tableflip"
)

func main() {
	p := &program{named: map[string]any{}, commands: map[string]func([]string) (string, error){}}
	p.register()
	path := filepath.Join(os.Args[1], fmt.Sprint(os.Getpid()))
	ctl, err := net.Listen("unix", path+".new")
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		fmt.Println("control socket:", err)
		os.Exit(3)
	}
	fmt.Printf("born pid=%d\n", os.Getpid())
	for {
		c, err := ctl.Accept()
		if err != nil {
			fmt.Println("control socket:", err)
			os.Exit(3)
		}
		go p.answer(c)
	}
}

type program struct {
	commands map[string]func([]string) (string, error)
	upg      *tableflip.Upgrader

	mu    sync.Mutex
	named map[string]any // listeners, packet conns, files
}

func (p *program) answer(c net.Conn) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	words := strings.Fields(line)
	for i, w := range words {
		words[i] = strings.Trim(w, `"`) // "" is an empty word
	}
	command := p.commands[words[0]]
	if command == nil {
		fmt.Fprintf(c, "no command %q", words[0])
		return
	}
	result, err := command(words[1:])
	switch {
	case errors.Is(err, tableflip.ErrNotSupported):
		result = "not supported: " + err.Error()
	case err != nil:
		result = "error: " + err.Error()
	}
	io.WriteString(c, result)
}

func (p *program) keep(name string, v any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named[name] = v
}

func (p *program) get(name string) any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.named[name]
}

// is is true if an interface holds something else than nil.
func is(v any) string {
	if v == nil {
		return "none"
	}
	return "here"
}

func (p *program) register() {
	c := p.commands
	c["new"] = func(args []string) (string, error) {
		var opts tableflip.Options
		for _, arg := range args {
			name, value, _ := strings.Cut(arg, "=")
			switch name {
			case "timeout":
				opts.UpgradeTimeout, _ = time.ParseDuration(value)
			case "pidfile":
				opts.PIDFile = value
			case "control":
				opts.ListenConfig = &net.ListenConfig{Control: func(network, address string, _ syscall.RawConn) error {
					fmt.Printf("control %s pid=%d\n", network, os.Getpid())
					return nil
				}}
			}
		}
		upg, err := tableflip.New(opts)
		if err == nil {
			p.upg = upg
			go func() { <-upg.Exit(); fmt.Printf("exit pid=%d\n", os.Getpid()) }()
		}
		return "ok", err
	}
	c["ready"] = func([]string) (string, error) { return "ok", p.upg.Ready() }
	c["upgrade"] = func([]string) (string, error) { return "ok", p.upg.Upgrade() }
	c["onhangup"] = func([]string) (string, error) { // SIGHUP asks for an upgrade, as in tableflip's documentation
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		go func() {
			for range hangups {
				err := p.upg.Upgrade()
				fmt.Printf("upgraded pid=%d: %v\n", os.Getpid(), err)
			}
		}()
		return "ok", nil
	}
	c["stop"] = func([]string) (string, error) { p.upg.Stop(); return "ok", nil }
	c["hasparent"] = func([]string) (string, error) { return fmt.Sprint(p.upg.HasParent()), nil }
	c["exiting"] = func([]string) (string, error) {
		select {
		case <-p.upg.Exit():
			return "true", nil
		default:
			return "false", nil
		}
	}
	c["waitexit"] = func([]string) (string, error) { <-p.upg.Exit(); return "ok", nil }
	c["waitparent"] = func(args []string) (string, error) {
		ctx := context.Background()
		if len(args) > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			cancel()
		}
		return "ok", p.upg.WaitForParent(ctx)
	}
	c["die"] = func(args []string) (string, error) {
		code := 0
		fmt.Sscan(args[0], &code)
		os.Exit(code)
		return "", nil
	}
	p.registerSockets()
	p.registerFiles()
}

func (p *program) registerSockets() {
	c := p.commands
	listener := func(name string, ln net.Listener, err error) (string, error) {
		if ln == nil || err != nil {
			return is(nil), err
		}
		if _, ok := ln.(tableflip.Listener); !ok {
			return "", fmt.Errorf("a %T is no tableflip.Listener", ln)
		}
		p.keep(name, ln)
		return ln.Addr().String(), nil
	}
	c["listen"] = func(a []string) (string, error) {
		ln, err := p.upg.Listen(a[1], a[2])
		return listener(a[0], ln, err)
	}
	c["listener"] = func(a []string) (string, error) {
		ln, err := p.upg.Listener(a[1], a[2])
		return listener(a[0], ln, err)
	}
	c["listencallback"] = func(a []string) (string, error) {
		ln, err := p.upg.ListenWithCallback(a[1], a[2], func(network, addr string) (net.Listener, error) {
			fmt.Printf("callback pid=%d\n", os.Getpid())
			return net.Listen(network, addr)
		})
		return listener(a[0], ln, err)
	}
	c["addlistener"] = func(a []string) (string, error) {
		ln, err := net.Listen(a[1], a[2])
		if err == nil {
			err = p.upg.AddListener(a[1], a[2], ln.(tableflip.Listener))
		}
		return listener(a[0], ln, err)
	}
	packet := func(name string, conn net.PacketConn, err error) (string, error) {
		if conn == nil || err != nil {
			return is(nil), err
		}
		p.keep(name, conn)
		return fmt.Sprintf("%s %T", conn.LocalAddr(), conn), nil
	}
	c["listenpacket"] = func(a []string) (string, error) {
		conn, err := p.upg.ListenPacket(a[1], a[2])
		return packet(a[0], conn, err)
	}
	c["packetconn"] = func(a []string) (string, error) {
		conn, err := p.upg.PacketConn(a[1], a[2])
		return packet(a[0], conn, err)
	}
	c["packetcallback"] = func(a []string) (string, error) {
		conn, err := p.upg.ListenPacketWithCallback(a[1], a[2], func(network, addr string) (net.PacketConn, error) {
			fmt.Printf("callback pid=%d\n", os.Getpid())
			return net.ListenPacket(network, addr)
		})
		return packet(a[0], conn, err)
	}
	c["addpacketconn"] = func(a []string) (string, error) {
		conn, err := net.ListenPacket(a[1], a[2])
		if err == nil {
			err = p.upg.AddPacketConn(a[1], a[2], conn.(tableflip.PacketConn))
		}
		return packet(a[0], conn, err)
	}
	c["addconn"] = func(a []string) (string, error) {
		conn, err := net.Dial(a[1], a[2])
		if err != nil {
			return "", err
		}
		p.keep(a[0], conn)
		return "ok", p.upg.AddConn(a[1], a[2], conn.(tableflip.Conn))
	}
	c["conn"] = func(a []string) (string, error) {
		conn, err := p.upg.Conn(a[1], a[2])
		if conn == nil || err != nil {
			return is(nil), err
		}
		p.keep(a[0], conn)
		return is(conn), nil
	}
	c["write"] = func(a []string) (string, error) {
		_, err := fmt.Fprintf(p.get(a[0]).(io.Writer), "pid=%d\n", os.Getpid())
		return "ok", err
	}
	// receive answers with the packet that comes next.
	c["receive"] = func(a []string) (string, error) {
		b := make([]byte, 100)
		n, _, err := p.get(a[0]).(net.PacketConn).ReadFrom(b)
		return string(b[:n]), err
	}
	c["close"] = func(a []string) (string, error) { return "ok", p.get(a[0]).(io.Closer).Close() }
	c["serve"] = func(a []string) (string, error) {
		ln := p.get(a[0]).(net.Listener)
		go func() {
			err := http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close")
				fmt.Fprintf(w, "pid=%d", os.Getpid())
			}))
			fmt.Printf("served %s pid=%d: %v\n", a[0], os.Getpid(), err)
		}()
		return "ok", nil
	}
}

func (p *program) registerFiles() {
	c := p.commands
	c["addfile"] = func(a []string) (string, error) {
		f, err := os.Open(a[1])
		if err != nil {
			return "", err
		}
		defer f.Close()
		return "ok", p.upg.AddFile(a[0], f)
	}
	c["file"] = func(a []string) (string, error) {
		f, err := p.upg.File(a[0])
		if f == nil || err != nil {
			return is(nil), err
		}
		defer f.Close()
		return f.Name(), nil
	}
	c["files"] = func([]string) (string, error) {
		files, err := p.upg.Files()
		var names []string
		for _, f := range files {
			names = append(names, f.Name())
			f.Close()
		}
		return strings.Join(names, " "), err
	}
}
