//go:build unix

package grace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"golang.org/x/sys/unix"
)

// pair gives a channel, and the bare other end.
func pair(t *testing.T) (*channel, *net.UnixConn) {
	t.Helper()
	a, b, err := unixPair()
	if err != nil {
		t.Fatal(err)
	}
	b.SetDeadline(time.Now().Add(limit))
	c := newChannel(a)
	t.Cleanup(func() { c.close(); b.Close() })
	return c, b
}

type end struct{ err error }

// reading runs c and gives what it reads.
func reading(c *channel) (<-chan message, <-chan end) {
	messages, ended := make(chan message, 1000), make(chan end, 1)
	c.run(func(m message) { messages <- m }, func(err error) { ended <- end{err} })
	return messages, ended
}

func TestChannelReadsFramesInPieces(t *testing.T) {
	want := []message{
		{typ: 'A'},
		{typ: 'B', payload: []byte("x")},
		{typ: 'C', payload: bytes.Repeat([]byte("0123456789"), 10_000)},
		{typ: 'D', payload: []byte{0, 0, 0, 0, 0, 0, 0, 0}},
	}
	var all []byte
	for _, m := range want {
		all = append(all, m.frame()...)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for name, size := range map[string]func() int{
		"whole":         func() int { return len(all) },
		"byte by byte":  func() int { return 1 },
		"random pieces": func() int { return 1 + rng.IntN(30_000) },
	} {
		t.Run(name, func(t *testing.T) {
			c, other := pair(t)
			messages, ended := reading(c)
			go func() {
				for rest := all; len(rest) > 0; {
					n := min(size(), len(rest))
					other.Write(rest[:n])
					rest = rest[n:]
				}
				other.Close()
			}()
			for _, m := range want {
				got := receive(t, messages, "a message")
				if got.typ != m.typ || !bytes.Equal(got.payload, m.payload) {
					t.Errorf("got %q with %d bytes, want %q with %d", got.typ, len(got.payload), m.typ, len(m.payload))
				}
			}
			if e := receive(t, ended, "the end"); e.err != io.EOF {
				t.Errorf("the channel ended with %v, want EOF", e.err)
			}
		})
	}
}

func TestChannelEnds(t *testing.T) {
	huge := func(size uint32) []byte {
		b := message{typ: 'X'}.frame()
		binary.BigEndian.PutUint32(b[4:], size)
		return b
	}
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":       {nil, io.EOF},
		"half a header": {[]byte{'M', 0, 0}, io.ErrUnexpectedEOF},
		"half a frame":  {message{typ: 'M', payload: []byte("abc")}.frame()[:10], io.ErrUnexpectedEOF},
		"too large":     {huge(maxPayload + 1), ErrProtocol},
		"2 GB":          {huge(1 << 31), ErrProtocol}, // below 0 as an int of 32 bit
		"4 GB":          {huge(math.MaxUint32), ErrProtocol},
		"garbage":       {[]byte("HTTP/1.1 200 OK\r\n\r\n"), ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			c, other := pair(t)
			_, ended := reading(c)
			other.Write(tc.in)
			other.Close()
			if e := receive(t, ended, "the end"); !errors.Is(e.err, tc.want) {
				t.Errorf("the channel ended with %v, want %v", e.err, tc.want)
			}
			sent := make(chan end, 1)
			c.sendThen(message{typ: 'A'}, func(err error) { sent <- end{err} })
			if e := receive(t, sent, "sent"); e.err == nil {
				t.Error("a message was sent over a channel that has ended")
			}
			c.flush(limit)
		})
	}
}

// pipes gives n pipes; what is written to the i-th's end can be read from it.
func pipes(t *testing.T, n int) (r []*os.File, w []int) {
	t.Helper()
	for range n {
		a, b, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, a)
		n, err := fd.Dup(b)
		if err != nil {
			t.Fatal(err)
		}
		w = append(w, n)
		b.Close()
		t.Cleanup(func() { a.Close() })
	}
	return r, w
}

// says checks that fd is the write end of r.
func says(t *testing.T, what string, fd int, r *os.File) {
	t.Helper()
	unix.Write(fd, []byte(what))
	unix.Close(fd)
	b, err := io.ReadAll(r)
	if err != nil || string(b) != what {
		t.Errorf("%s: read %q, error %v", what, b, err)
	}
}

func TestChannelCarriesDescriptors(t *testing.T) {
	c, other := pair(t)
	peer := newChannel(other)
	messages, _ := reading(peer)
	reading(c)
	var readers []*os.File
	// Frames of all sizes, so that some come together and some in pieces.
	counts := []int{1, 0, 3, maxFDs, 0, 2, 1}
	for i, n := range counts {
		r, w := pipes(t, n)
		readers = append(readers, r...)
		m := message{typ: 'F', payload: bytes.Repeat([]byte{byte(i)}, i*i*5000), fds: w}
		c.sendThen(m, func(err error) {
			if err != nil {
				t.Errorf("send %d descriptors: %v", n, err)
			}
			fd.CloseAll(w)
		})
	}
	for i, n := range counts {
		m := receive(t, messages, "a message")
		if len(m.fds) != n || len(m.payload) != i*i*5000 {
			t.Fatalf("message %d has %d descriptors and %d bytes, want %d and %d", i, len(m.fds), len(m.payload), n, i*i*5000)
		}
		for _, fd := range m.fds {
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("a received descriptor is not close-on-exec")
			}
			says(t, fmt.Sprint("message ", i), fd, readers[0])
			readers = readers[1:]
		}
	}
}

// A descriptor that the kernel drops, since the table is full, must not make the
// next message's descriptors somebody else's.
func TestChannelKeepsDescriptorsWithTheirFrame(t *testing.T) {
	c, other := pair(t)
	r, w := pipes(t, 2)
	// Written before anybody reads, so that the reader gets the first frame's
	// tail, which lost its descriptor, together with the second frame.
	lost := message{typ: '1', payload: []byte("lost"), fds: []int{0}}.frame()
	if _, err := other.Write(lost); err != nil {
		t.Fatal(err)
	}
	for i, fd := range w {
		if _, err := writeSome(other, message{typ: messageType('2' + i), fds: []int{fd}}.frame(), []int{fd}); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	messages, _ := reading(c)
	if m := receive(t, messages, "the first message"); len(m.fds) != 0 {
		t.Errorf("the first message got %d descriptors of another one", len(m.fds))
		fd.CloseAll(m.fds)
	}
	for i := range 2 {
		m := receive(t, messages, "the next message")
		if len(m.fds) != 1 {
			t.Fatalf("message %c has %d descriptors, want 1", m.typ, len(m.fds))
		}
		says(t, fmt.Sprint("pipe ", i), m.fds[0], r[i])
	}
}

func TestChannelClosesWhatNobodyTook(t *testing.T) {
	c, other := pair(t)
	_, ended := reading(c)
	r, w := pipes(t, 1)
	// The frame never comes whole.
	b := message{typ: 'F', payload: []byte("abcdef"), fds: w}.frame()
	if _, err := writeSome(other, b[:10], w); err != nil {
		t.Fatal(err)
	}
	fd.CloseAll(w)
	other.Close()
	receive(t, ended, "the end")
	r[0].SetReadDeadline(time.Now().Add(limit))
	if _, err := r[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the descriptor of an unfinished frame is still open: %v", err)
	}
}

func TestManifestLargerThanTheSocketBuffer(t *testing.T) {
	c, other := pair(t)
	want := manifest{Version: protocolVersion, Generation: 7}
	for range 1000 {
		want.Sockets = append(want.Sockets, entry{Kind: kindFile, Addr: strings.Repeat("long", 4000)})
	}
	if err := c.prewrite(newMessage(msgManifest, &want)); err != nil {
		t.Fatal(err)
	}
	if len(c.queue) == 0 {
		t.Fatal("the manifest fits the socket buffer; the test wants a larger one")
	}
	c.send(message{typ: msgGo}) // queued behind it
	peer := newChannel(other)
	peer.most += maxPerSocket * len(want.Sockets)
	messages, _ := reading(peer)
	reading(c)
	m := receive(t, messages, "the manifest")
	var got manifest
	if err := m.decode(&got); err != nil || m.typ != msgManifest {
		t.Fatalf("got a message %q, error %v", m.typ, err)
	}
	if len(got.Sockets) != len(want.Sockets) || got.Sockets[999] != want.Sockets[999] {
		t.Errorf("got %d sockets, want %d", len(got.Sockets), len(want.Sockets))
	}
	if m := receive(t, messages, "the next message"); m.typ != msgGo {
		t.Errorf("after the manifest comes %q, want %q", m.typ, msgGo)
	}
}

func TestChannelCloseAnswersWhatIsQueued(t *testing.T) {
	c, _ := pair(t) // nobody reads at the other end
	reading(c)
	sent := make(chan error, 100)
	for range 100 {
		c.sendThen(message{typ: 'X', payload: make([]byte, 1<<18)}, func(err error) { sent <- err })
	}
	c.close()
	failed := 0
	for range 100 {
		if receive(t, sent, "an answer") != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing failed, and nobody has read")
	}
}

func TestFlushWritesWhatIsQueued(t *testing.T) {
	for range 100 {
		c, other := pair(t)
		reading(c)
		c.send(message{typ: msgStop, payload: []byte("{}")})
		c.flush(limit)
		c.close() // the process exits
		b, err := io.ReadAll(other)
		if err != nil || len(b) != frameHeader+2 {
			t.Fatalf("read %d bytes, error %v; want the whole frame", len(b), err)
		}
	}
}

func TestJoinParent(t *testing.T) {
	good := manifest{Version: protocolVersion, Generation: 2, Sockets: []entry{{}, {}}}
	for name, tc := range map[string]struct {
		version, count int
		first          []byte
		want           error
		text           string
	}{
		"other version": {version: protocolVersion + 1, want: ErrProtocol, text: "version 2"},
		"no manifest":   {first: message{typ: msgGo}.frame(), want: ErrProtocol, text: "begins with a message 'G'"},
		"no record":     {first: message{typ: msgManifest, payload: []byte("no")}.frame(), want: ErrProtocol},
		"wrong count":   {count: 3, first: newMessage(msgManifest, &good).frame(), want: ErrProtocol, text: "names 2 sockets, and 3"},
		"old is gone":   {first: nil, want: io.EOF},
		"old is dying":  {first: newMessage(msgManifest, &good).frame()[:20], want: io.ErrUnexpectedEOF},
		"good":          {count: 2, first: newMessage(msgManifest, &good).frame()},
	} {
		t.Run(name, func(t *testing.T) {
			ours, control, err := controlPair()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			_, ready := pipes(t, 1)
			h := &handover{version: protocolVersion, control: control, ready: ready[0], count: tc.count}
			if tc.version != 0 {
				h.version = tc.version
				defer fd.CloseAll([]int{control, ready[0]})
			}
			ours.Write(tc.first)
			ours.Close()
			p, err := joinParent(h, limit)
			if tc.want == nil {
				if err != nil || p.m.Generation != 2 {
					t.Fatalf("joinParent: %v", err)
				}
				p.ch.close()
				p.ready.Close()
				return
			}
			wantErr(t, err, tc.want)
			if s := err.Error(); !strings.HasPrefix(s, "grace: ") || strings.Count(s, "grace: ") != 1 || !strings.Contains(s, tc.text) {
				t.Errorf("error text %q, want one that begins with %q and has %q", s, "grace: ", tc.text)
			}
		})
	}
}
