//go:build unix

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/julofinance/grace/v3"
)

// A -rights server has a protocol of its own, whose connections move. It answers
// each message with its pid, the message, and what is in the file whose descriptor
// came along. The flag says by which method it reads.
var rightsAddrs addrs

func init() {
	flag.Var(&rightsAddrs, "rights", "method,network=addr to take messages with descriptors on; may be repeated")
	listenElse = append(listenElse, func(u *grace.Upgrader) error {
		for _, a := range rightsAddrs {
			method, a, _ := strings.Cut(a, ",")
			ln, err := listenOn(u, "rights", a)
			if err != nil {
				return err
			}
			u.Server(grace.Server{Listener: ln, Protocol: "rights/1", Serve: func(ln net.Listener) error {
				for {
					c, err := ln.Accept()
					if err != nil {
						return err
					}
					go serveRights(c.(unixConn), method)
				}
			}})
		}
		return nil
	})
}

// unixConn is what accepted connections have of a *net.UnixConn.
type unixConn interface {
	net.Conn
	File() (*os.File, error)
	ReadFrom([]byte) (int, net.Addr, error)
	ReadFromUnix([]byte) (int, *net.UnixAddr, error)
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
}

func serveRights(c unixConn, method string) {
	if *blocking {
		f, err := c.File()
		if err != nil {
			panic(err)
		}
		defer f.Close()
		f.Fd()
	}
	b, oob := make([]byte, 100), make([]byte, 100)
	for {
		var n, oobn int
		var err error
		switch method {
		case "Read":
			n, err = c.Read(b)
		case "ReadFrom":
			n, _, err = c.ReadFrom(b)
		case "ReadFromUnix":
			n, _, err = c.ReadFromUnix(b)
		case "ReadMsgUnix":
			n, oobn, _, _, err = c.ReadMsgUnix(b, oob)
		}
		if errors.Is(err, grace.ErrMove) {
			if err := grace.Move(c, nil); err == nil {
				return
			} else if errors.Is(err, grace.ErrStopped) {
				c.Close()
				return
			}
			continue
		}
		if err != nil {
			c.Close()
			return
		}
		fmt.Fprintf(c, "%d %s %s\n", os.Getpid(), b[:n], contents(oob[:oobn]))
	}
}

// contents gives what is in the file that came with a message.
func contents(oob []byte) (text string) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return err.Error()
	}
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return err.Error()
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "came along")
			b, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
			if err != nil {
				return err.Error()
			}
			text += string(b)
			f.Close()
		}
	}
	return text
}
