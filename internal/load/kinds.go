package load

import (
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// rounds has for each kind what one round sends, and waits for. An error means
// that one request is lost.
var rounds = map[Kind]func(*client) error{
	KeepAlive:   (*client).post,
	Slow:        (*client).slow,
	Connect:     (*client).post,
	Stream:      (*client).stream,
	Pipelined:   (*client).pipeline,
	Trickle:     (*client).trickle,
	Upload:      (*client).upload,
	Expect:      (*client).expect,
	Head:        (*client).head,
	NotModified: (*client).notModified,
	Chunked:     (*client).chunked,
	HalfClose:   (*client).halfClose,
	TLS:         (*client).post,
	HTTP2:       nil, // see runHTTP2
}

const host = "Host: load\r\n"

// echo is a POST whose body comes back.
func echo(body, more string) string {
	return fmt.Sprintf("POST /echo HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s", host, more, len(body), body)
}

func get(path, more string) string {
	return fmt.Sprintf("GET %s HTTP/1.1\r\n%s%s\r\n", path, host, more)
}

// post has a body of some random length, up to more than one read of a server.
func (c *client) post() error {
	body := c.token() + strings.Repeat(".", rand.IntN(6000))
	return c.ask(echo(body, ""), "POST", 200, body)
}

func (c *client) slow() error {
	t := c.token()
	return c.ask(get("/slow?ms=300&say="+t, ""), "GET", 200, t)
}

func (c *client) head() error {
	return c.ask(fmt.Sprintf("HEAD /sized?n=4321 HTTP/1.1\r\n%s\r\n", host), "HEAD", 200, "")
}

func (c *client) notModified() error {
	return c.ask(get("/sized?n=4321", "If-None-Match: \"4321\"\r\n"), "GET", 304, "")
}

func (c *client) chunked() error {
	t := c.token()
	return c.ask(get("/chunked?say="+t, ""), "GET", 200, strings.Repeat(t+"\n", 5))
}

// pipeline sends four requests at once, in two pieces, so that a server may have
// half a request when it has answered those before. If an answer says that the connection
// ends, the server has not begun those behind it, and the next round sends them
// again.
func (c *client) pipeline() error {
	bodies := c.again
	c.count(func(n *Count) { n.Resent += len(bodies) })
	for len(c.again) == 0 && len(bodies) < 4 {
		bodies = append(bodies, c.token()+strings.Repeat(".", rand.IntN(300)))
	}
	c.again = nil
	var all strings.Builder
	for _, b := range bodies {
		all.WriteString(echo(b, ""))
	}
	text := all.String()
	half := rand.IntN(len(text))
	sent := time.Now()
	err := c.send(text[:half])
	if err == nil {
		time.Sleep(rand.N(20 * time.Millisecond))
		c.send(text[half:]) // if it fails there may be answers all the same
	}
	for err == nil && len(bodies) > 0 && c.conn != nil {
		var resp *response
		if resp, err = c.receive("POST", 200, bodies[0]); err == nil {
			bodies = bodies[1:]
			c.answered(resp, sent)
		}
	}
	if err != nil {
		c.lose(len(bodies)-1, err) // and one more by the caller
		return err
	}
	c.again = bodies
	return nil
}

// trickle sends a request byte by byte.
func (c *client) trickle() error {
	t := c.token()
	request := echo(t, "")
	for _, b := range []byte(request[:len(request)-1]) {
		if _, err := c.conn.Write([]byte{b}); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return c.ask(request[len(request)-1:], "POST", 200, t)
}

// upload sends a body in pieces.
func (c *client) upload() error {
	const pieces = 16
	piece := strings.Repeat(c.token()+"\n", 100)
	body := strings.Repeat(piece, pieces)
	err := c.send(fmt.Sprintf("POST /sum HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", host, len(body)))
	for range pieces - 1 {
		if err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond / pieces)
		err = c.send(piece)
	}
	if err != nil {
		return err
	}
	return c.ask(piece, "POST", 200, sum([]byte(body)))
}

// sum is how the server answers an upload.
func sum(body []byte) string {
	return fmt.Sprintf("%d %08x", len(body), crc32.ChecksumIEEE(body))
}

// expect sends its body when the server asks for it.
func (c *client) expect() error {
	t := c.token()
	request := echo(t, "Expect: 100-continue\r\n")
	head := len(request) - len(t)
	if err := c.send(request[:head]); err != nil {
		return err
	}
	if _, err := c.receive("POST", 100, ""); err != nil {
		return err
	}
	return c.ask(request[head:], "POST", 200, t)
}

func (c *client) closeWrite() error {
	if h, ok := c.conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return fmt.Errorf("load: %T can't be half-closed", c.conn)
}

// halfClose sends a request and then the end of its half.
func (c *client) halfClose() error {
	t := c.token()
	sent := time.Now()
	if err := c.send(get("/slow?ms=20&say="+t, "")); err != nil {
		return err
	}
	if err := c.closeWrite(); err != nil {
		return err
	}
	resp, err := c.receive("GET", 200, t)
	if err != nil {
		return err
	}
	if err := c.atEnd(); err != nil {
		return err
	}
	c.answered(resp, sent)
	return nil
}

// atEnd waits until the server closes its half as well.
func (c *client) atEnd() error {
	if b, err := c.in.ReadByte(); err == nil {
		return fmt.Errorf("%w: %q after the end", errWrong, b)
	} else if err != io.EOF {
		return err
	}
	return nil
}

// stream is an upgraded connection for 1.5 s.
func (c *client) stream() error {
	const echoes = 30
	sent := time.Now()
	if err := c.send(get("/stream", "Connection: Upgrade\r\nUpgrade: echo\r\n")); err != nil {
		return err
	}
	resp, err := c.receive("GET", 101, "")
	if err != nil {
		return err
	}
	waited := time.Since(sent)
	for range echoes {
		time.Sleep(50 * time.Millisecond)
		if err := c.streamed(c.token()); err != nil {
			return err
		}
	}
	if err := c.closeWrite(); err != nil {
		return err
	}
	if line, err := readLine(c.in); err != nil || line != fmt.Sprintf("end %d", echoes) {
		return wrongLine(line, "the end", err)
	}
	if err := c.atEnd(); err != nil {
		return err
	}
	c.answered(resp, time.Now().Add(-waited))
	return nil
}

// streamed sends one line and waits for its echo.
func (c *client) streamed(line string) error {
	if err := c.send(line + "\n"); err != nil {
		return err
	}
	got, err := readLine(c.in)
	if err != nil || got != line {
		return wrongLine(got, line, err)
	}
	return nil
}

func wrongLine(got, want string, err error) error {
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return fmt.Errorf("stream: %w: got %.60q, want %.60q", errWrong, got, want)
}
