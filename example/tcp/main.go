// Tcp is a server of a line-based protocol of its own, whose clients stay
// connected over upgrades: it answers each line with its pid and the line.
//
//	go build -o lines ./example/tcp && GRACE_PIDFILE=lines.pid ./lines
//	nc localhost 9001            # type some lines; the pid is answered
//	kill -USR2 $(cat lines.pid)  # type more: another pid, the same connection
//
// A connection moves between two lines. What the client has sent of the next
// one goes along.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/julofinance/grace/v3"
)

const (
	maxLine      = 32 << 10        // as much as grace.Move takes along
	idleTimeout  = 5 * time.Minute // for the next line
	writeTimeout = 30 * time.Second
)

func main() {
	addr := flag.String("addr", "localhost:9001", "`host:port` to listen on")
	probation := flag.Duration("probation", time.Second, "how long the old version stands by")
	flag.Parse()
	u, err := grace.New(grace.Probation(*probation))
	if err != nil {
		log.Fatal(err)
	}
	ln, err := u.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", ln.Addr())
	u.Server(grace.Server{Listener: ln, Serve: serve, Protocol: "lines/1"})
	if err := u.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func serve(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go handle(c)
	}
}

// handle answers whole lines before each Read, so that whenever a Read says
// ErrMove nothing is owed to the client, and buf holds the begin of a line at
// most. A client that does not read its answers holds handle up in Write, and
// stays with this process until it does.
func handle(c net.Conn) {
	buf := make([]byte, 0, maxLine)
	for {
		c.SetReadDeadline(time.Now().Add(idleTimeout))
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case errors.Is(err, grace.ErrMove):
			err := grace.Move(c, buf)
			if err == nil {
				return // not ours any more: not even to be closed
			}
			if errors.Is(err, grace.ErrStopped) {
				c.Close() // no process takes it, and this one ends
				return
			}
			continue // it stays, and so does buf
		case err != nil:
			c.Close()
			return
		}
		var answers []byte
		rest := buf
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				break
			}
			answers = fmt.Appendf(answers, "%d %s\n", os.Getpid(), line)
			rest = after
		}
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := c.Write(answers); err != nil || len(rest) == maxLine {
			c.Close() // gone or too slow, or a line is too long
			return
		}
		buf = append(buf[:0], rest...)
	}
}
