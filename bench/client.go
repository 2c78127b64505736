//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"time"
)

// A client makes requests on one connection, without an allocation.
type client struct {
	conn net.Conn // tcp, or TLS over it
	tcp  *net.TCPConn
	buf  [1024]byte
}

const (
	request = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
	// patience is what an answer may take. No result depends on it.
	patience = 10 * time.Second
)

var (
	requestBytes = []byte(request)
	endOfHeader  = []byte("\r\n\r\n")
)

func dial(addr string) (*client, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(5 * time.Minute)) // once: to set it costs time
	return &client{conn: c, tcp: c.(*net.TCPConn)}, nil
}

// dial is dial for what p speaks.
func (p *process) dial() (*client, error) {
	c, err := dial(p.addr)
	if err == nil && p.trust != nil {
		secure := tls.Client(c.conn, p.trust)
		if err = secure.Handshake(); err != nil {
			c.close()
			return nil, err
		}
		c.conn = secure
	}
	return c, err
}

// get gives the body, which ends with a newline.
func (c *client) get(req []byte) ([]byte, error) {
	if _, err := c.conn.Write(req); err != nil {
		return nil, err
	}
	for n := 0; ; {
		m, err := c.conn.Read(c.buf[n:])
		if err != nil {
			return nil, err
		}
		n += m
		if i := bytes.Index(c.buf[:n], endOfHeader); i >= 0 && n > i+4 && c.buf[n-1] == '\n' {
			return c.buf[i+4 : n], nil
		}
	}
}

// ask makes the request, and gives the pid in the answer.
func (c *client) ask() (pid int, err error) {
	body, err := c.get(requestBytes)
	if err != nil {
		return 0, err
	}
	text := bytes.TrimSpace(bytes.TrimPrefix(body, []byte("process ")))
	if pid, err = strconv.Atoi(string(text)); err != nil {
		return 0, fmt.Errorf("the answer is %q", body)
	}
	return pid, nil
}

// close closes the connection so that no port waits for its time to pass.
func (c *client) close() {
	c.tcp.SetLinger(0)
	c.tcp.Close()
}

// askOnce is a request on a connection of its own.
func askOnce(addr string) (pid int, err error) {
	c, err := dial(addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	return c.ask()
}
