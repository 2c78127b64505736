package load

import (
	"io"
	"net"
	"sync"
	"time"
)

// A Relay stands for the network between client and server: it passes bytes on
// after a delay, and likewise the end of one half, and a reset.
type Relay struct {
	network, addr string
	delay         time.Duration
	ln            net.Listener
	wg            sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]bool
	closed   bool
	accepted int
	unserved int
}

// NewRelay listens on a port of the loopback for the server at addr.
func NewRelay(network, addr string, delay time.Duration) (*Relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{network: network, addr: addr, delay: delay, ln: ln, conns: map[net.Conn]bool{}}
	r.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.accepted++
			r.mu.Unlock()
			r.wg.Go(func() { r.serve(c) })
		}
	})
	return r, nil
}

// Addr is where clients connect to.
func (r *Relay) Addr() string { return r.ln.Addr().String() }

// Accepted says how many connections have come.
func (r *Relay) Accepted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accepted
}

// Unserved says how many connections the server has refused, or ended without a
// byte from it. It is true of all once Close has returned.
func (r *Relay) Unserved() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unserved
}

func (r *Relay) countUnserved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unserved++
}

// Close cuts all connections and waits for their end.
func (r *Relay) Close() {
	r.ln.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *Relay) add(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
	if r.closed {
		c.Close()
	}
}

func (r *Relay) remove(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	c.Close()
}

func (r *Relay) serve(client net.Conn) {
	r.add(client)
	defer r.remove(client)
	server, err := net.Dial(r.network, r.addr)
	if err != nil {
		r.countUnserved()
		reset(client)
		return
	}
	r.add(server)
	defer r.remove(server)
	var both sync.WaitGroup
	both.Go(func() { r.pass(client, server) })
	both.Go(func() {
		if r.pass(server, client) == 0 {
			r.countUnserved()
		}
	})
	both.Wait()
}

// reset closes c so that its other end sees a reset, where there is such a thing.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// A piece is what was read at once.
type piece struct {
	data []byte
	err  error // after data
	due  time.Time
}

// pass passes everything on that src says, until its end, and says how many
// bytes were read.
func (r *Relay) pass(src, dst net.Conn) (read int) {
	pieces := make(chan piece, 64)
	dead := make(chan struct{}) // dst takes no more
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 16<<10)
			n, err := src.Read(buf)
			select {
			case pieces <- piece{buf[:n], err, time.Now().Add(r.delay)}:
			case <-dead:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		read += len(p.data)
		if len(p.data) > 0 {
			if _, err := dst.Write(p.data); err != nil {
				close(dead)
				reset(src)
				return read
			}
		}
		switch {
		case p.err == io.EOF:
			dst.(interface{ CloseWrite() error }).CloseWrite()
		case p.err != nil:
			reset(dst)
		}
	}
	return read
}
