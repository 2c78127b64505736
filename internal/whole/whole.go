// Package whole carries a stream of bytes over a connection so that one that was cut off,
// at whichever byte, is never taken for a whole one. The end of the connection does not
// tell: a sender that dies has one as well.
//
// The stream is chunks: four bytes, big-endian, and what they announce.
//
//	n, below 1<<31   n bytes of the stream, at most maxChunk
//	0                the end: the stream is whole
//	1<<31 | n        the sender has failed; n bytes of text say why
package whole

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	header   = 4
	maxChunk = 64 << 10
	failed   = 1 << 31
	maxText  = 4 << 10
)

// errEnded is that of a Write after the end.
var errEnded = errors.New("the stream was ended")

// A Writer writes the stream to w, a full chunk at a time. It is for one goroutine.
type Writer struct {
	w   io.Writer
	buf []byte // room for the header, and what is not written yet
	n   int64
	err error
}

func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, buf: make([]byte, header, header+maxChunk)}
}

// Write adds p to the stream. Its error is that of the connection, and stays.
func (w *Writer) Write(p []byte) (n int, err error) {
	for n < len(p) && w.err == nil {
		m := min(len(p)-n, cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[n:n+m]...)
		n += m
		if len(w.buf) == cap(w.buf) {
			w.flush()
		}
	}
	if w.err != nil {
		return 0, w.err
	}
	w.n += int64(n)
	return n, nil
}

// Len is how many bytes were added.
func (w *Writer) Len() int64 { return w.n }

// End writes what is left, and says that the stream is whole.
func (w *Writer) End() error {
	if len(w.buf) > header && w.err == nil {
		w.flush()
	}
	return w.last(0, nil)
}

// Fail says that the stream is not whole, and why. What is not written yet is dropped.
func (w *Writer) Fail(why string) error {
	text := why[:min(len(why), maxText)]
	return w.last(failed|uint32(len(text)), []byte(text))
}

func (w *Writer) last(head uint32, text []byte) error {
	if w.err != nil {
		return w.err
	}
	_, err := w.w.Write(append(binary.BigEndian.AppendUint32(nil, head), text...))
	if w.err = errEnded; err != nil {
		w.err = err
	}
	return err
}

func (w *Writer) flush() {
	binary.BigEndian.PutUint32(w.buf, uint32(len(w.buf)-header))
	_, w.err = w.w.Write(w.buf)
	w.buf = w.buf[:header]
}

// A FailedError is the reason that the sender has given.
type FailedError struct{ Why string }

func (e *FailedError) Error() string { return e.Why }

// A Reader reads what a Writer has written to r. It is for one goroutine.
type Reader struct {
	r    *bufio.Reader
	left int // of the chunk that is being read
	n    int64
	err  error
}

func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, maxChunk)} }

// Read returns io.EOF only when all of the stream was read. It returns a *FailedError if
// the sender has failed, an error that wraps io.ErrUnexpectedEOF if the connection ends too
// soon, and the connection's other errors. Each stays.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.left == 0 && r.err == nil {
		r.left, r.err = r.next()
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p[:min(len(p), r.left)])
	r.left -= n
	r.n += int64(n)
	r.err = cut(err)
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// Len is how many bytes were read.
func (r *Reader) Len() int64 { return r.n }

// Err is the error that stays, io.EOF after the end of the stream; nil if there is more.
func (r *Reader) Err() error { return r.err }

// next reads what comes before the bytes of a chunk.
func (r *Reader) next() (int, error) {
	var b [header]byte
	if _, err := io.ReadFull(r.r, b[:]); err != nil {
		return 0, cut(err)
	}
	head := binary.BigEndian.Uint32(b[:])
	switch {
	case head == 0:
		return 0, io.EOF
	case head >= failed && head-failed <= maxText:
		text := make([]byte, head-failed)
		if _, err := io.ReadFull(r.r, text); err != nil {
			return 0, cut(err)
		}
		return 0, &FailedError{string(text)}
	case head > maxChunk:
		return 0, fmt.Errorf("a chunk that begins with %#x is none of this stream", head)
	}
	return int(head), nil
}

// cut gives the error of a stream that ends before its end.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
