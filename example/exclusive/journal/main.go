//go:build unix

// Journal keeps what clients give it in a file that it alone appends to, under flock(2),
// and replaces itself. It speaks HTTP, and on another port a line-based protocol.
//
//	go build -o journal ./example/exclusive/journal && GRACE_PIDFILE=journal.pid ./journal
//	curl -d apples localhost:9000/add
//	kill -USR2 $(cat journal.pid)
//	curl localhost:9000/all
//
// At an upgrade the new process opens the file when the old one has finished its requests
// and closed it. Clients wait meanwhile.
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
	"sync"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3"
)

func main() {
	httpAddr := flag.String("http", "localhost:9000", "`host:port` for HTTP")
	lineAddr := flag.String("lines", "localhost:9001", "`host:port` for lines")
	j := &journal{}
	flag.StringVar(&j.path, "file", "journal.txt", "the journal's `file`")
	probation := flag.Duration("probation", time.Second, "how long the old version stands by")
	timeout := flag.Duration("timeout", 10*time.Second, "of each step by which the file changes hands")
	flag.Parse()
	u, err := grace.New(grace.Exclusive(j.open, j.close), grace.ExclusiveTimeout(*timeout), grace.Probation(*probation))
	if err != nil {
		log.Fatal(err)
	}
	web, err1 := u.Listen("tcp", *httpAddr)
	lines, err2 := u.Listen("tcp", *lineAddr)
	if err := errors.Join(err1, err2); err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", web.Addr(), lines.Addr())
	u.HTTP(&http.Server{Handler: j.handler(), ReadHeaderTimeout: 10 * time.Second}, web)
	u.Server(grace.Server{Listener: lines, Serve: j.serveLines, Protocol: "journal/1"})
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A journal is open from open to close. The library calls them in turn.
type journal struct {
	path string
	mu   sync.Mutex
	file *os.File
}

// broken is set by the tests, at the linker: how a new version fails.
var broken string

// open waits for the lock as long as another process has it.
func (j *journal) open(ctx context.Context) error {
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return fmt.Errorf("%s is locked by another process: %w", j.path, ctx.Err())
		}
	}
	switch broken {
	case "acquire":
		f.Close()
		return errors.New("this version can't read the journal")
	case "die":
		os.Exit(3)
	case "die later":
		time.AfterFunc(30*time.Millisecond, func() { os.Exit(3) })
	case "hang":
		select {}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.file = f
	return nil
}

func (j *journal) close(context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := j.file
	j.file = nil
	return errors.Join(f.Sync(), f.Close())
}

// add returns nil when the entry is in the file.
func (j *journal) add(entry string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return errors.New("the journal is not open")
	}
	_, err := j.file.WriteString(entry + "\n")
	return err
}

func (j *journal) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add", func(w http.ResponseWriter, r *http.Request) {
		entry, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1000))
		if err == nil {
			err = j.add(string(entry))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /all", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, j.path)
	})
	return mux
}

func (j *journal) serveLines(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go j.serveConn(c)
	}
}

// serveConn answers each line with "ok". Between two lines the connection may move to a
// new process, with what was read of the next one.
func (j *journal) serveConn(c net.Conn) {
	in := bufio.NewReader(c)
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case errors.Is(err, grace.ErrMove):
			rest, _ := in.Peek(in.Buffered())
			if grace.Move(c, append(line, rest...)) == nil {
				return // it is not this process's any more
			}
			continue
		case err != nil || len(line) > 1000:
			c.Close()
			return
		}
		if err := j.add(string(line[:len(line)-1])); err != nil {
			fmt.Fprintln(c, "error:", err)
		} else {
			fmt.Fprintln(c, "ok")
		}
		line = line[:0]
	}
}
