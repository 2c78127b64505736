//go:build unix

package control

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
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
	"golang.org/x/sys/unix"
)

// pair gives a channel, and the bare other end.
func pair(t *testing.T) (*Channel, *net.UnixConn) {
	t.Helper()
	a, b, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	b.SetDeadline(time.Now().Add(wait.Limit))
	c := New(a)
	t.Cleanup(func() { c.Close(); b.Close() })
	return c, b
}

type end struct{ err error }

// reading runs c and gives what it reads.
func reading(c *Channel) (<-chan Message, <-chan end) {
	messages, ended := make(chan Message, 1000), make(chan end, 1)
	c.Run(func(m Message) { messages <- m }, func(err error) { ended <- end{err} })
	return messages, ended
}

func TestChannelReadsFramesInPieces(t *testing.T) {
	want := []Message{
		{Type: 'A'},
		{Type: 'B', Payload: []byte("x")},
		{Type: 'C', Payload: bytes.Repeat([]byte("0123456789"), 10_000)},
		{Type: 'D', Payload: []byte{0, 0, 0, 0, 0, 0, 0, 0}},
	}
	var all []byte
	for _, m := range want {
		all = append(all, m.Frame()...)
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
				got := wait.For(t, messages, "a message")
				if got.Type != m.Type || !bytes.Equal(got.Payload, m.Payload) {
					t.Errorf("got %q with %d bytes, want %q with %d", got.Type, len(got.Payload), m.Type, len(m.Payload))
				}
			}
			if e := wait.For(t, ended, "the end"); e.err != io.EOF {
				t.Errorf("the channel ended with %v, want EOF", e.err)
			}
		})
	}
}

func TestChannelEnds(t *testing.T) {
	huge := func(size uint32) []byte {
		b := Message{Type: 'X'}.Frame()
		binary.BigEndian.PutUint32(b[4:], size)
		return b
	}
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":       {nil, io.EOF},
		"half a header": {[]byte{'M', 0, 0}, io.ErrUnexpectedEOF},
		"half a frame":  {Message{Type: 'M', Payload: []byte("abc")}.Frame()[:10], io.ErrUnexpectedEOF},
		"too large":     {huge(MaxPayload + 1), ErrProtocol},
		"2 GB":          {huge(1 << 31), ErrProtocol}, // below 0 as an int of 32 bit
		"4 GB":          {huge(math.MaxUint32), ErrProtocol},
		"garbage":       {[]byte("HTTP/1.1 200 OK\r\n\r\n"), ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			c, other := pair(t)
			_, ended := reading(c)
			other.Write(tc.in)
			other.Close()
			if e := wait.For(t, ended, "the end"); !errors.Is(e.err, tc.want) {
				t.Errorf("the channel ended with %v, want %v", e.err, tc.want)
			}
			sent := make(chan end, 1)
			c.SendThen(Message{Type: 'A'}, func(err error) { sent <- end{err} })
			if e := wait.For(t, sent, "sent"); e.err == nil {
				t.Error("a message was sent over a channel that has ended")
			}
			c.Flush(wait.Limit)
		})
	}
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
	peer := New(other)
	messages, _ := reading(peer)
	reading(c)
	var readers []*os.File
	// Frames of all sizes, so that some come together and some in pieces.
	counts := []int{1, 0, 3, MaxFDs, 0, 2, 1}
	for i, n := range counts {
		r, w := fdtest.Pipes(t, n)
		readers = append(readers, r...)
		m := Message{Type: 'F', Payload: bytes.Repeat([]byte{byte(i)}, i*i*5000), FDs: w}
		c.SendThen(m, func(err error) {
			if err != nil {
				t.Errorf("send %d descriptors: %v", n, err)
			}
			fd.CloseAll(w)
		})
	}
	for i, n := range counts {
		m := wait.For(t, messages, "a message")
		if len(m.FDs) != n || len(m.Payload) != i*i*5000 {
			t.Fatalf("message %d has %d descriptors and %d bytes, want %d and %d", i, len(m.FDs), len(m.Payload), n, i*i*5000)
		}
		for _, fd := range m.FDs {
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("a received descriptor is not close-on-exec")
			}
			says(t, fmt.Sprint("message ", i), fd, readers[0])
			readers = readers[1:]
		}
	}
}

// A descriptor that the kernel drops, since the table is full, must not give the next
// message's descriptors to another message.
func TestChannelKeepsDescriptorsWithTheirFrame(t *testing.T) {
	c, other := pair(t)
	r, w := fdtest.Pipes(t, 2)
	// Written before the other end reads, so that the reader gets the first frame's
	// tail, which lost its descriptor, together with the second frame.
	lost := Message{Type: '1', Payload: []byte("lost"), FDs: []int{0}}.Frame()
	if _, err := other.Write(lost); err != nil {
		t.Fatal(err)
	}
	for i, fd := range w {
		if _, err := writeSome(other, Message{Type: Type('2' + i), FDs: []int{fd}}.Frame(), []int{fd}); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	messages, _ := reading(c)
	if m := wait.For(t, messages, "the first message"); len(m.FDs) != 0 {
		t.Errorf("the first message got %d descriptors of another one", len(m.FDs))
		fd.CloseAll(m.FDs)
	}
	for i := range 2 {
		m := wait.For(t, messages, "the next message")
		if len(m.FDs) != 1 {
			t.Fatalf("message %c has %d descriptors, want 1", m.Type, len(m.FDs))
		}
		says(t, fmt.Sprint("pipe ", i), m.FDs[0], r[i])
	}
}

func TestChannelClosesWhatWasNotTaken(t *testing.T) {
	c, other := pair(t)
	_, ended := reading(c)
	r, w := fdtest.Pipes(t, 1)
	// The frame never comes whole.
	b := Message{Type: 'F', Payload: []byte("abcdef"), FDs: w}.Frame()
	if _, err := writeSome(other, b[:10], w); err != nil {
		t.Fatal(err)
	}
	fd.CloseAll(w)
	other.Close()
	wait.For(t, ended, "the end")
	r[0].SetReadDeadline(time.Now().Add(wait.Limit))
	if _, err := r[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the descriptor of an unfinished frame is still open: %v", err)
	}
}

func TestMessageLargerThanTheSocketBuffer(t *testing.T) {
	c, other := pair(t)
	want := Message{Type: 'M', Payload: bytes.Repeat([]byte("long"), 4_000_000)}
	if err := c.Prewrite(want); err != nil {
		t.Fatal(err)
	}
	if len(c.queue) == 0 {
		t.Fatal("the message fits the socket buffer; the test wants a larger one")
	}
	c.Send(Message{Type: 'G'}) // queued behind it
	peer := New(other)
	peer.Allow(1000)
	messages, _ := reading(peer)
	reading(c)
	if m := wait.For(t, messages, "the message"); m.Type != 'M' || !bytes.Equal(m.Payload, want.Payload) {
		t.Fatalf("got a message %q of %d bytes, want %d", m.Type, len(m.Payload), len(want.Payload))
	}
	if m := wait.For(t, messages, "the next message"); m.Type != 'G' {
		t.Errorf("after the large message comes %q, want G", m.Type)
	}
}

// Peek tells the type of a message that has come in part, and next returns all of it.
func TestPeek(t *testing.T) {
	c, other := pair(t)
	if typ, ok := c.Peek(); ok {
		t.Errorf("nothing was sent, and a message %q can be read", typ)
	}
	b := Message{Type: 'S', Payload: []byte("abc")}.Frame()
	other.Write(b[:3])
	if typ, ok := c.Peek(); !ok || typ != 'S' {
		t.Errorf("peek gives %q, %v, want S", typ, ok)
	}
	other.Write(b[3:])
	if m, err := c.Next(); err != nil || m.Type != 'S' || string(m.Payload) != "abc" {
		t.Errorf("next gives %q %q, error %v", m.Type, m.Payload, err)
	}
}

func TestChannelCloseAnswersWhatIsQueued(t *testing.T) {
	c, _ := pair(t) // the other end does not read
	reading(c)
	sent := make(chan error, 100)
	for range 100 {
		c.SendThen(Message{Type: 'X', Payload: make([]byte, 1<<18)}, func(err error) { sent <- err })
	}
	c.Close()
	failed := 0
	for range 100 {
		if wait.For(t, sent, "an answer") != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing failed, and the other end has not read")
	}
}

func TestFlushWritesWhatIsQueued(t *testing.T) {
	for range 100 {
		c, other := pair(t)
		reading(c)
		c.Send(Message{Type: 'S', Payload: []byte("{}")})
		c.Flush(wait.Limit)
		c.Close() // the process exits
		b, err := io.ReadAll(other)
		if err != nil || len(b) != frameHeader+2 {
			t.Fatalf("read %d bytes, error %v; want the whole frame", len(b), err)
		}
	}
}

// A message that can't be written in time is taken back, if nothing of it is; and
// one that is begun becomes whole, or the next could not be read.
func TestChannelSendsWithin(t *testing.T) {
	c, other := pair(t)
	reading(c)
	sent := make(chan error, 9)
	tell := func(err error) { sent <- err }
	r, w := fdtest.Pipes(t, 1)
	large := Message{Type: '1', Payload: make([]byte, MaxPayload), FDs: w}
	for cut := false; !cut; { // the first of them may fit
		c.SendWithin(20*time.Millisecond, large, tell)
		err := wait.For(t, sent, "the first message")
		cut = errors.Is(err, ErrCutShort)
		if err != nil && !cut {
			t.Fatalf("a message that is written in part: got %v, want %v", err, ErrCutShort)
		}
	}
	c.SendWithin(20*time.Millisecond, Message{Type: '2'}, tell)
	if err := wait.For(t, sent, "the second message"); !errors.Is(err, ErrNotSent) {
		t.Errorf("a message behind it: got %v, want %v", err, ErrNotSent)
	}
	c.SendThen(Message{Type: '3'}, tell)
	fd.CloseAll(w)
	messages, _ := reading(New(other))
	for {
		m := wait.For(t, messages, "the messages")
		if m.Type == '3' {
			break
		}
		if m.Type != '1' || len(m.Payload) != MaxPayload || len(m.FDs) != 1 {
			t.Fatalf("got a message %q of %d bytes with %d descriptors", m.Type, len(m.Payload), len(m.FDs))
		}
		fd.CloseAll(m.FDs)
	}
	if err := wait.For(t, sent, "the third message"); err != nil {
		t.Errorf("a message without a limit: %v", err)
	}
	r[0].SetReadDeadline(time.Now().Add(wait.Limit))
	if _, err := r[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor is left: %v", err)
	}
}

// A channel that was read to its end is not closed: for the other process its
// Close is the end of this one.
func TestChannelStaysOpen(t *testing.T) {
	c, other := pair(t)
	_, ended := reading(c)
	if _, err := other.Write([]byte("this is no message of ours")); err != nil {
		t.Fatal(err)
	}
	if e := wait.For(t, ended, "the end"); !errors.Is(e.err, ErrProtocol) {
		t.Fatalf("the channel ended with %v, want %v", e.err, ErrProtocol)
	}
	c.Send(Message{Type: 'X'})
	if m, err := New(other).Next(); err != nil || m.Type != 'X' {
		t.Errorf("the other end reads %q, error %v; want a message", m.Type, err)
	}
}

// socketPair makes two connected unix sockets.
func socketPair() (a, b *net.UnixConn, err error) {
	a, n, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	b, err = fd.NewUnixConn(n)
	return a, b, err
}
