//go:build unix

// Ledger keeps what clients give it in a file that one process at a time may have: the
// smallest program with exclusive state, by grace.Serve, or one that has five listeners
// of different kinds.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3"
)

func main() {
	serve := flag.String("serve", "", "`host:port` for HTTP, by grace.Serve; without it there are five listeners")
	cert := flag.String("cert", "", "`file` with the certificate for HTTPS")
	key := flag.String("key", "", "`file` with its key")
	l := &ledger{}
	flag.StringVar(&l.path, "file", "ledger.txt", "the `file` with the entries")
	flag.Parse()
	exclusive, probation := grace.Exclusive(l.open, l.close), grace.Probation(50*time.Millisecond)
	if *serve != "" {
		fmt.Println("listening", *serve)
		if err := grace.Serve(*serve, l.handler(), exclusive, probation); err != nil {
			log.Fatal(err)
		}
		return
	}
	u, err := grace.New(exclusive, probation)
	if err != nil {
		log.Fatal(err)
	}
	if err := l.listen(u, *cert, *key); err != nil {
		log.Fatal(err)
	}
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// listen gives u a server for each kind, and prints where they listen, in the order of
// exclusivetest.Server.
func (l *ledger) listen(u *grace.Upgrader, cert, key string) error {
	var errs []error
	tcp := func() net.Listener {
		ln, err := u.Listen("tcp", "127.0.0.1:0")
		errs = append(errs, err)
		return ln
	}
	web, lines, secure, h2c := tcp(), tcp(), tcp(), tcp()
	packets, err := u.ListenPacket("udp", "127.0.0.1:0")
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	l.packets = packets
	fmt.Println("listening", web.Addr(), lines.Addr(), secure.Addr(), h2c.Addr(), packets.LocalAddr())
	u.HTTP(&http.Server{Handler: l.handler()}, web)
	u.Server(grace.Server{Listener: lines, Serve: l.serveLines, Protocol: "ledger/1"})
	u.HTTPS(&http.Server{Handler: l.handler()}, secure, cert, key)
	speaks := new(http.Protocols)
	speaks.SetUnencryptedHTTP2(true)
	u.HTTP(&http.Server{Handler: l.handler(), Protocols: speaks}, h2c)
	return nil
}

// A ledger is open from open to close.
type ledger struct {
	path    string
	packets net.PacketConn // nil: none
	reader  sync.WaitGroup // the goroutine that reads packets

	mu   sync.Mutex
	file *os.File // nil: this process has no ledger
}

// open does not wait: when it is called, no other process may have the file. What a file
// beside it says makes this call fail, once.
func (l *ledger) open(context.Context) error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		fmt.Printf("two have it: pid=%d %v\n", os.Getpid(), err)
		return err
	}
	how, _ := os.ReadFile(l.path + ".break")
	os.Remove(l.path + ".break")
	switch string(how) {
	case "fail":
		return errors.Join(errors.New("this version can't read the ledger"), f.Close())
	case "die":
		os.Exit(3)
	}
	l.mu.Lock()
	l.file = f
	l.mu.Unlock()
	fmt.Printf("acquired pid=%d\n", os.Getpid())
	if l.packets != nil {
		l.packets.SetReadDeadline(time.Time{})
		l.reader.Go(l.readPackets)
	}
	return nil
}

// close ends the work that belongs to no connection before it gives the file back.
func (l *ledger) close(context.Context) error {
	if l.packets != nil {
		l.packets.SetReadDeadline(time.Unix(1, 0))
		l.reader.Wait()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.file
	l.file = nil
	fmt.Printf("released pid=%d\n", os.Getpid())
	return f.Close()
}

// add returns nil when the entry is in the file.
func (l *ledger) add(entry string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return errors.New("the ledger is not open")
	}
	_, err := l.file.WriteString(entry + "\n")
	return err
}

func (l *ledger) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add", func(w http.ResponseWriter, r *http.Request) {
		entry, err := io.ReadAll(r.Body)
		if err == nil {
			err = l.add(string(entry))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /all", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, l.path)
	})
	return mux
}

func (l *ledger) serveLines(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go l.serveConn(c)
	}
}

// serveConn answers each line. Between two the connection may move.
func (l *ledger) serveConn(c net.Conn) {
	in := bufio.NewReader(c)
	line := ""
	for {
		part, err := in.ReadString('\n')
		line += part
		if errors.Is(err, grace.ErrMove) {
			rest, _ := in.Peek(in.Buffered())
			if grace.Move(c, append([]byte(line), rest...)) == nil {
				return
			}
			continue
		}
		if err != nil {
			c.Close()
			return
		}
		fmt.Fprintln(c, l.answer(line[:len(line)-1]))
		line = ""
	}
}

func (l *ledger) answer(entry string) string {
	if err := l.add(entry); err != nil {
		return "error: " + err.Error()
	}
	return "ok"
}

// readPackets answers each packet, until close is called or the socket is closed.
func (l *ledger) readPackets() {
	b := make([]byte, 1000)
	for {
		n, from, err := l.packets.ReadFrom(b)
		if err != nil {
			return
		}
		l.packets.WriteTo([]byte(l.answer(strings.TrimSpace(string(b[:n])))+"\n"), from)
	}
}
