//go:build linux

package exclusivetest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

// A dialed client has one connection at a time.
type dialed struct {
	dial func() (net.Conn, error)
	conn net.Conn // nil: none
	in   *bufio.Reader
}

// open connects, unless there is a connection.
func (c *dialed) open() (err error) {
	if c.conn == nil {
		if c.conn, err = c.dial(); err != nil {
			c.conn = nil
			return err
		}
		c.in = bufio.NewReader(c.conn)
	}
	c.conn.SetDeadline(time.Now().Add(limit))
	return nil
}

func (c *dialed) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// A webClient sends a POST, on the connection that it has unless the server has said that
// it ends. Nothing is sent twice.
type webClient struct {
	dialed
	once bool // a connection for each request
}

func (c *webClient) add(entry string) (err error) {
	if err := c.open(); err != nil {
		return err
	}
	ends := true
	defer func() {
		if ends {
			c.close()
		}
	}()
	more := ""
	if c.once {
		more = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(c.conn, "POST /add HTTP/1.1\r\nHost: app\r\n%sContent-Length: %d\r\n\r\n%s", more, len(entry), entry); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || string(body) != "ok\n") {
		err = fmt.Errorf("%s: %.100q", resp.Status, body)
	}
	ends = resp.Close || err != nil
	return err
}

// A lineClient has one connection, and another only when that has failed. Over UDP a line is
// a packet, which is sent once.
type lineClient struct {
	dialed
	halves bool   // send the beginning of a line before its turn, so that an upgrade may come in between
	sent   string // that beginning
}

func (c *lineClient) add(entry string) (err error) {
	if err := c.open(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.close()
			c.sent = ""
		}
	}()
	if _, err := io.WriteString(c.conn, strings.TrimPrefix(entry+"\n", c.sent)); err != nil {
		return err
	}
	if err := isOK(c.in.ReadString('\n')); err != nil || !c.halves {
		return err
	}
	c.sent = entryPrefix
	io.WriteString(c.conn, c.sent) // if that fails, so does the next call
	return nil
}

// isOK gives an error if the answer is another.
func isOK(answer string, err error) error {
	if err == nil && answer != "ok\n" {
		err = fmt.Errorf("%.100q", answer)
	}
	return err
}

// An http2Client opens another connection when it is told to go away. Nothing is sent twice.
type http2Client struct{ asks *http2test.Client }

func newHTTP2(dial func() (net.Conn, error)) *http2Client {
	c := &http2Client{http2test.NewClient(dial)}
	c.asks.Limit = limit
	return c
}

func (c *http2Client) add(entry string) error { return isOK(c.asks.Post("/add", entry)) }
func (c *http2Client) close()                 { c.asks.Close() }
