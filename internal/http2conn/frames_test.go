package http2conn

import (
	"bytes"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

// A sink is a connection that keeps what is written to it. It may take a part of a
// Write only, and fail with the rest as if a deadline had passed.
type sink struct {
	net.Conn
	got    []byte
	random *rand.Rand
	fails  bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.fails && len(p) > 0 && s.random.IntN(3) == 0 {
		n := s.random.IntN(len(p))
		s.got = append(s.got, p[:n]...)
		return n, os.ErrDeadlineExceeded
	}
	s.got = append(s.got, p...)
	return len(p), nil
}

func (s *sink) Close() error { return nil }

// splitFrames cuts bytes into frames, without any code that is tested here.
func splitFrames(t testing.TB, b []byte) (all [][]byte) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 9 {
			t.Fatalf("%d bytes are left, no frame's header", len(b))
		}
		n := 9 + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
		if len(b) < n {
			t.Fatalf("a frame of %d bytes has %d", n, len(b))
		}
		all, b = append(all, b[:n]), b[n:]
	}
	return all
}

func frame(typ, flags byte, stream uint32, payload ...byte) []byte {
	return http2test.AppendFrame(nil, typ, flags, stream, payload...)
}

// FuzzWrite: however a server's frames are cut into Writes, and whichever of these
// fail in their midst, the client gets them as they are, and our GOAWAY and PING once
// at most: where the first chance is after GoAway, between two frames, not within a
// header block, not before the client's SETTINGS were acknowledged, and never after a
// GOAWAY of the server.
func FuzzWrite(f *testing.F) {
	f.Add([]byte{4, 20, 1, 0, 9, 9, 0}, uint64(1), uint16(3), false)
	f.Add([]byte{20, 1, 9, 5, 9, 0, 0, 7, 0}, uint64(2), uint16(40), true)
	for n := range uint64(30) {
		f.Add([]byte{20, 0, 1, 9, 9, 25, 6, 0, 17, 5, 9, 9, 9, 41, 3, 8, 2}, n, uint16(n*31), n%2 == 0)
	}
	f.Fuzz(func(t *testing.T, kinds []byte, seed uint64, at uint16, fails bool) {
		if len(kinds) > 1000 {
			return
		}
		random := rand.New(rand.NewPCG(seed, 1))
		text := frame(typeSettings, 0, 0)
		block := false
		for _, k := range kinds {
			typ, flags := k%16, byte(0)
			if block { // nothing else may be sent
				typ = typeContinuation
			} else if typ == typeContinuation {
				typ = typeHeaders
			}
			payload := make([]byte, []int{0, 4, 8, 9, 300, 5000}[random.IntN(6)])
			for i := range payload {
				payload[i] = byte(random.Uint32())
			}
			switch typ {
			case typeHeaders, typePushPromise, typeContinuation:
				if block = k < 128 && random.IntN(3) > 0; !block {
					flags = flagEndHeaders
				}
			case typeSettings:
				flags = k >> 4 & 1 // an acknowledgement
			}
			text = append(text, frame(typ, flags, 1, payload...)...)
		}
		if block {
			text = append(text, frame(typeContinuation, flagEndHeaders, 1)...)
			block = false
		}

		s := &sink{random: random, fails: fails}
		c := New(s)
		asked := -1 // how much had been written then
		for rest := text; len(rest) > 0; {
			if asked < 0 && len(text)-len(rest) >= int(at) {
				asked = len(text) - len(rest)
				c.leave.Store(&leave{})
				if c.due() { // as the goroutine of GoAway does
					c.tell()
				}
			}
			n, err := c.Write(rest[:1+random.IntN(min(len(rest), 1+random.IntN(9000)))])
			if err != nil && !fails {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		s.fails = false
		if _, err := c.Write(nil); err != nil {
			t.Fatal(err)
		}

		// What must have come.
		var want []byte
		settled, left, told := false, false, false
		tell := func() {
			if asked >= 0 && !told && settled && !left && !block && len(want) >= asked {
				want, told = append(want, farewell...), true
			}
		}
		for _, f := range splitFrames(t, text) {
			want = append(want, f...)
			switch f[3] {
			case typeHeaders, typePushPromise, typeContinuation:
				block = f[4]&flagEndHeaders == 0
			case typeSettings:
				settled = settled || f[4]&flagAck != 0
			case typeGoAway:
				left = true
			}
			tell()
		}
		if !bytes.Equal(s.got, want) {
			t.Fatalf("asked after %d bytes: %d bytes came, want %d; the first difference is at %d", asked, len(s.got), len(want), differ(s.got, want))
		}
	})
}

func differ(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// FuzzRead: however what a client sends is cut into Reads, the answer to our PING is
// found where it ends, and nothing else is taken for it.
func FuzzRead(f *testing.F) {
	for n := range uint64(30) {
		f.Add([]byte{4, 1, 9, 6, 22, 0, 6, 8, 22, 0}, n)
	}
	f.Fuzz(func(t *testing.T, kinds []byte, seed uint64) {
		if len(kinds) > 1000 {
			return
		}
		random := rand.New(rand.NewPCG(seed, 2))
		text := []byte(http2test.Preface)
		end := -1 // of the first answer
		for _, k := range kinds {
			typ, flags := k%16, byte(0)
			payload := make([]byte, []int{0, 4, 7, 9, 300, 5000}[random.IntN(6)])
			if typ == typePing {
				if payload, flags = make([]byte, smallLen), k>>4&1; flags == 1 && k < 64 {
					payload = pingData[:]
				}
			} else if len(payload) > 9+smallLen && k > 128 { // what looks like the answer
				copy(payload, frame(typePing, flagAck, 0, pingData[:]...))
			}
			text = append(text, frame(typ, flags, 0, payload...)...)
			if typ == typePing && flags == 1 && k < 64 && end < 0 {
				end = len(text)
			}
		}
		a := &source{text: text, random: random}
		c := New(a)
		c.leave.Store(&leave{})
		read := 0
		for read < len(text) && !c.answered {
			n, err := c.Read(make([]byte, 1+random.IntN(9000)))
			if err != nil {
				t.Fatal(err)
			}
			if read += n; c.answered && (end < 0 || read < end || read-n >= end) {
				t.Fatalf("the answer was found between %d and %d, it ends at %d", read-n, read, end)
			}
		}
		if end >= 0 && !c.answered {
			t.Fatalf("the answer that ends at %d was not found", end)
		}
	})
}

// A source is a connection that gives text in pieces.
type source struct {
	net.Conn
	text   []byte
	random *rand.Rand
}

func (s *source) Read(p []byte) (int, error) {
	n := copy(p[:1+s.random.IntN(len(p))], s.text)
	s.text = s.text[n:]
	return n, nil
}
