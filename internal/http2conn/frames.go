package http2conn

import "encoding/binary"

// The frame types and flags of RFC 9113, section 6, that are told apart here.
const (
	typeHeaders      = 1
	typeSettings     = 4
	typePushPromise  = 5
	typePing         = 6
	typeGoAway       = 7
	typeContinuation = 9

	flagAck        = 1
	flagEndHeaders = 4
)

// preface is what a client sends before its first frame, RFC 9113, section 3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	headerLen  = 9 // of a frame, section 4.1
	prefaceLen = len(preface)
	smallLen   = 8 // the payload of a PING
)

// frames follows one direction of a connection, from its first byte on. It is a plain
// value: a copy of it can be used to look ahead.
type frames struct {
	head  [headerLen]byte // of the present frame, or of the last if have is 0
	have  int             // how much of head there is
	left  int             // what is missing of the payload, once head is whole
	small [smallLen]byte  // the payload, if it is no longer than this
	block bool            // a header block has begun, and its end has not come
}

// newClientFrames is for what a client sends: the preface counts as the payload of a
// frame that means nothing.
func newClientFrames() frames {
	return frames{head: [headerLen]byte{2: byte(prefaceLen)}, have: headerLen, left: prefaceLen}
}

// next takes bytes from the front of p: to the end of the present frame, or all of p
// if the frame is longer. n is how many, whole whether the frame's end was among them.
func (f *frames) next(p []byte) (n int, whole bool) {
	if f.have < headerLen {
		n = copy(f.head[f.have:], p)
		if f.have += n; f.have < headerLen {
			return n, false
		}
		f.left = f.size()
	}
	k := min(f.left, len(p)-n)
	if size := f.size(); size <= smallLen {
		copy(f.small[size-f.left:], p[n:n+k])
	}
	f.left -= k
	if n += k; f.left > 0 {
		return n, false
	}
	f.have = 0
	switch f.typ() {
	case typeHeaders, typePushPromise, typeContinuation:
		f.block = f.flags()&flagEndHeaders == 0
	}
	return n, true
}

func (f *frames) size() int   { return int(binary.BigEndian.Uint32(f.head[:]) >> 8) }
func (f *frames) typ() byte   { return f.head[3] }
func (f *frames) flags() byte { return f.head[4] }

// between reports whether a frame of another kind may come now: none has begun, nor a
// header block, in which nothing but its CONTINUATION frames may follow (RFC 9113,
// section 4.3).
func (f *frames) between() bool { return f.have == 0 && !f.block }

// written follows what a server writes.
type written struct {
	frames
	settled bool // the client's SETTINGS were acknowledged, and the server's sent before
	left    bool // GOAWAY was sent
}

// next takes from the front of p what belongs to one frame, and returns how much.
func (w *written) next(p []byte) int {
	n, whole := w.frames.next(p)
	if whole {
		switch w.typ() {
		case typeSettings:
			w.settled = w.settled || w.flags()&flagAck != 0
		case typeGoAway:
			w.left = true
		}
	}
	return n
}

// all takes all of p.
func (w *written) all(p []byte) {
	for len(p) > 0 {
		p = p[w.next(p):]
	}
}

// open reports whether our GOAWAY may be written now.
func (w *written) open() bool { return w.between() && w.settled && !w.left }
