package whole

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// stream writes parts, and ends with end.
func stream(t testing.TB, end func(*Writer) error, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	n := 0
	for _, p := range parts {
		if m, err := w.Write(p); err != nil || m != len(p) {
			t.Fatalf("Write of %d bytes gave %d, %v", len(p), m, err)
		}
		n += len(p)
	}
	if w.Len() != int64(n) {
		t.Errorf("Len is %d after %d bytes", w.Len(), n)
	}
	if err := end(w); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// TestWhole: what was written is read, in whichever pieces, and then io.EOF.
func TestWhole(t *testing.T) {
	for name, sizes := range map[string][]int{
		"nothing":                {},
		"writes of nothing":      {0, 0},
		"one byte":               {1},
		"small writes":           {3, 1, 4, 1, 5},
		"a chunk":                {maxChunk},
		"a chunk in two":         {1, maxChunk - 1},
		"a chunk and a byte":     {maxChunk, 1},
		"several chunks at once": {3*maxChunk + 7},
		"small and large":        {7, 2 * maxChunk, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var parts [][]byte
			for _, n := range sizes {
				parts = append(parts, noise(n))
			}
			want, sent := bytes.Join(parts, nil), stream(t, (*Writer).End, parts...)
			for how, in := range map[string]io.Reader{
				"at once":         bytes.NewReader(sent),
				"in halves":       iotest.HalfReader(bytes.NewReader(sent)),
				"byte by byte":    iotest.OneByteReader(bytes.NewReader(sent)),
				"with more after": io.MultiReader(bytes.NewReader(sent), strings.NewReader("\x00\x00\x00\x01x")),
			} {
				r := NewReader(in)
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, want) || r.Len() != int64(len(want)) || r.Err() != io.EOF {
					t.Errorf("%s: got %d bytes, %v, then %v; want %d bytes", how, len(got), err, r.Err(), len(want))
				}
				if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("%s: after the end Read gives %d, %v", how, n, err)
				}
			}
		})
	}
}

// TestCutAnywhere: a stream that lacks a byte at its end is not whole, wherever it was cut.
func TestCutAnywhere(t *testing.T) {
	sent := stream(t, (*Writer).End, noise(maxChunk), noise(9))
	for n := range sent {
		if n > 100 && n < len(sent)-100 && n%997 != 0 {
			continue
		}
		if _, err := io.ReadAll(NewReader(bytes.NewReader(sent[:n]))); err != io.ErrUnexpectedEOF {
			t.Fatalf("cut off after %d of %d bytes: error %v, want %v", n, len(sent), err, io.ErrUnexpectedEOF)
		}
	}
}

// TestFail: a sender that fails says why, after what it has written.
func TestFail(t *testing.T) {
	for _, why := range []string{"", "disk full", strings.Repeat("x", maxText+1)} {
		sent := stream(t, func(w *Writer) error { return w.Fail(why) }, noise(maxChunk), noise(5))
		got, err := io.ReadAll(NewReader(bytes.NewReader(sent)))
		var failure *FailedError
		if !errors.As(err, &failure) || failure.Why != why[:min(len(why), maxText)] || len(got) != maxChunk {
			t.Errorf("%.20q: got %d bytes, and %.50v", why, len(got), err)
		}
		for n := range len(sent) {
			if n < maxChunk {
				continue
			}
			if _, err := io.ReadAll(NewReader(bytes.NewReader(sent[:n]))); err != io.ErrUnexpectedEOF {
				t.Fatalf("cut off after %d of %d bytes: error %v", n, len(sent), err)
			}
		}
	}
}

// TestErrorsStay: those of the connection, on both sides, and a Writer that was ended.
func TestErrorsStay(t *testing.T) {
	no := errors.New("no")
	r := NewReader(io.MultiReader(strings.NewReader("\x00\x00\x00\x05abc"), iotest.ErrReader(no)))
	if got, err := io.ReadAll(r); string(got) != "abc" || err != no || r.Err() != no {
		t.Errorf("got %q, %v, want the error of the connection", got, err)
	}
	w := NewWriter(brokenWriter{no})
	for range 2 {
		if n, err := w.Write(noise(maxChunk)); n != 0 || err != no {
			t.Errorf("Write gives %d, %v", n, err)
		}
	}
	if err := w.End(); err != no {
		t.Errorf("End gives %v", err)
	}
	if err := w.Fail("x"); err != no {
		t.Errorf("Fail gives %v", err)
	}
	w = NewWriter(io.Discard)
	w.End()
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after the end gives no error")
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

// FuzzReader: no input makes the Reader panic, or take much memory, and none of another
// protocol looks whole.
func FuzzReader(f *testing.F) {
	f.Add(stream(f, (*Writer).End, []byte("abc")))
	f.Add(stream(f, func(w *Writer) error { return w.Fail("why") }, []byte("abc")))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := io.ReadAll(NewReader(bytes.NewReader(b)))
		if len(got) > len(b) {
			t.Errorf("%d bytes of %d", len(got), len(b))
		}
		if err == nil && !bytes.Contains(b, make([]byte, header)) {
			t.Errorf("%q looks whole, and has no end", b)
		}
	})
}
