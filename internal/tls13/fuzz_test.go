package tls13

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// FuzzRecords lets crypto/tls and the record layer of this package serve the same client,
// with the same keys: they have to return the same data and the same errors, and to write
// the same bytes, whatever the client sends and however it comes in pieces. Ours is
// also moved at any moment.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{opData, 10, 0, opWrite, 1, 9, opMove, opData, 200, 7, opFinish})
	f.Add([]byte{opKeyUpdate, 1, 5, opWrite, 0, 1, opMove, opData, 1, 0, opKeyUpdate, 0, 2, opMove, opRest, opWrite, 0, 1, opCloseNotify})
	f.Add([]byte{opKeyUpdate, 0, 2, opData, 1, 1})
	f.Add([]byte{opKeyUpdate, 1, 10, opWrite, 0, 9})
	f.Add([]byte{opKeyUpdate, 2, 5})
	f.Add([]byte{opAlert, 90, opAlert, 42})
	f.Add([]byte{opCCS, 1, opCCS, 1, opData, 1, 1, opCCS, 2})
	f.Add([]byte{opData, 255, 255, opData, 254, 255, opWrite, 255, 255, opMove, opWrite, 255, 0})
	f.Add([]byte{opType, 99, 3, opData, 1, 1})
	f.Add([]byte{opType, 0, 9})
	f.Add([]byte{opDamage, 8, 4})
	f.Add([]byte{opHeader, 23, 0x41, 1})
	f.Add([]byte{opHeader, 21, 0, 2})
	f.Add([]byte{opRaw, 5, 'G', 'E', 'T', ' ', '/'})
	f.Add([]byte{opPieces, 3, opData, 40, 0, opMove, opData, 3, 3, opMove, opEOF, 0})
	f.Add([]byte{opPieces, 3, opData, 40, 0, opMove, opEOF, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &duel{scene: newScene(t), t: t, in: bytes.NewReader(b), piece: 1 << 20, buffer: 1000}
		for d.step() {
		}
	})
}

const (
	opData = iota
	opWrite
	opMove
	opKeyUpdate
	opRest
	opAlert
	opCloseNotify
	opCCS
	opType
	opDamage
	opHeader
	opRaw
	opPieces
	opBuffer
	opEOF
	opFinish
	ops
)

// A duel is one run of FuzzRecords.
type duel struct {
	*scene
	t       *testing.T
	in      *bytes.Reader // what is to happen
	piece   int           // how many bytes come at once
	buffer  int           // how large a Read is
	useless int           // records in a row without data
	hand    []byte        // what of a handshake message was not sent yet
	steps   int
}

// strict reports whether the oracle refuses what follows a KeyUpdate in its record: since
// Go 1.26, and as RFC 8446, 5.1 says.
var strict = !strings.HasPrefix(runtime.Version(), "go1.25")

func (d *duel) byte() int {
	b, _ := d.in.ReadByte()
	return int(b)
}

// step does one thing; false if that was the last one.
func (d *duel) step() bool {
	if d.steps++; d.in.Len() == 0 || d.steps > 150 {
		return d.finish()
	}
	op := d.byte() % ops
	if d.useless >= maxUseless-2 { // the limit has a test of its own
		op = opData
	}
	switch op {
	case opData:
		n, padding := d.byte(), d.byte()
		switch n {
		case 255:
			n = maxPlaintext
		case 254:
			n = maxPlaintext + 1 - padding%3
		}
		if n > 0 {
			d.useless = 0
		} else {
			d.useless++
		}
		return d.deliver(d.client.record(d.t, recordData, bytes.Repeat([]byte{byte('a' + n%26)}, n), min(padding, maxPlaintext+2-min(n, maxPlaintext))))
	case opWrite:
		p := bytes.Repeat([]byte("w"), d.byte()<<8|d.byte())
		n, err := d.oracle.Write(p)
		m, oursErr := d.ours.Write(p)
		if n != m || class(err) != class(oursErr) {
			d.t.Fatalf("Write of %d bytes: crypto/tls %d, %v; ours %d, %v", len(p), n, err, m, oursErr)
		}
		return d.sameWire()
	case opMove:
		if s, err := d.ours.Extract(); err == nil {
			d.ours = d.conn(d.t, s)
		} else if err != errHalfMessage {
			d.t.Fatalf("Extract: %v", err)
		}
		return true
	case opKeyUpdate:
		if len(d.hand) > 0 && !strict {
			return d.handshake(len(d.hand))
		}
		m := []byte{handKeyUpdate, 0, 0, 1, byte(d.byte())}
		part := d.byte()
		if part > 5 && strict {
			m = append(m, m...)
		}
		d.hand = append(d.hand, m...)
		return d.handshake(max(1, min(part, len(m))))
	case opRest:
		return d.handshake(len(d.hand))
	case opAlert:
		d.useless++
		return d.deliver(d.client.record(d.t, recordAlert, []byte{byte(1 + d.useless%2), byte(d.byte())}, 0))
	case opCloseNotify:
		return d.deliver(d.client.record(d.t, recordAlert, []byte{1, 0}, 0))
	case opCCS:
		d.useless++
		return d.deliver([]byte{recordChangeCipherSpec, 3, 3, 0, 1, byte(d.byte())})
	case opType:
		typ, n := d.byte(), d.byte()
		if typ == recordHandshake {
			typ++
		}
		d.useless++
		return d.deliver(d.client.record(d.t, byte(typ), bytes.Repeat([]byte("a"), n), n%3))
	case opDamage:
		r := d.client.record(d.t, recordData, make([]byte, d.byte()), 0)
		i := headerLen + d.byte()%(len(r)-headerLen)
		r[i] ^= 1
		return d.deliver(r)
	case opHeader:
		typ, high, low := d.byte(), d.byte(), d.byte()
		d.useless++
		return d.deliver([]byte{byte(typ), 3, 3, byte(high), byte(low)})
	case opRaw:
		b := make([]byte, d.byte()%12)
		n, _ := d.in.Read(b)
		d.useless += 2
		return d.deliver(b[:n])
	case opPieces:
		d.piece = max(1, d.byte())
	case opBuffer:
		d.buffer = max(1, d.byte()<<6)
	case opEOF:
		d.oracleWire.end, d.oursWire.end = io.EOF, io.EOF
		return d.compareReads()
	case opFinish:
		return d.finish()
	}
	return true
}

// handshake sends n bytes of the messages that wait.
func (d *duel) handshake(n int) bool {
	n = min(n, len(d.hand))
	part := d.hand[:n]
	d.hand = d.hand[n:]
	r := d.client.record(d.t, recordHandshake, part, 0)
	d.useless++
	if len(d.hand) == 0 && n > 0 {
		check(d.t, d.client.update())
	}
	return d.deliver(r)
}

// deliver brings b to both, piece by piece, and lets both read.
func (d *duel) deliver(b []byte) bool {
	for first := true; first || len(b) > 0; first = false {
		n := min(max(d.piece, len(b)/50), len(b))
		d.feed(b[:n])
		if b = b[n:]; !d.compareReads() {
			return false
		}
	}
	return true
}

// compareReads lets both read all that is there; false if the connection has ended.
func (d *duel) compareReads() bool {
	want, wantErr := drain(d.oracle, d.buffer)
	got, err := drain(d.ours, d.buffer)
	if !bytes.Equal(want, got) || class(wantErr) != class(err) {
		d.t.Fatalf("crypto/tls reads %d bytes, %v; ours %d bytes, %v", len(want), wantErr, len(got), err)
	}
	return d.sameWire() && errors.Is(err, os.ErrDeadlineExceeded)
}

// sameWire compares what both have written since the last time.
func (d *duel) sameWire() bool {
	want, got := d.oracleWire.out.Bytes(), d.oursWire.out.Bytes()
	if !bytes.Equal(want, got) {
		d.t.Fatalf("crypto/tls has written %d bytes, ours %d bytes, or others: %x, %x", len(want), len(got), tail(want), tail(got))
	}
	d.oracleWire.out.Reset()
	d.oursWire.out.Reset()
	return true
}

func tail(b []byte) []byte { return b[max(0, len(b)-200):] }

// finish ends the connection from the server's side.
func (d *duel) finish() bool {
	if class(d.oracle.Close()) != class(d.ours.Close()) {
		d.t.Fatal("Close returns another error")
	}
	d.sameWire()
	return false
}

// class says what must be the same in two errors.
func class(err error) string {
	var op *net.OpError
	switch {
	case err == nil, err == io.EOF, err == io.ErrUnexpectedEOF:
		return errText(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &op):
		return op.Error() // names the alert
	}
	return "another error"
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestRecordsAtRandom is FuzzRecords where nothing fuzzes.
func TestRecordsAtRandom(t *testing.T) {
	seed := time.Now().UnixNano()
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range 150 {
		b := make([]byte, 3+random.IntN(120))
		for j := range b {
			b[j] = byte(random.Uint32())
			if random.IntN(3) > 0 { // more of what ends nothing
				b[j] = byte(random.IntN(opRest + 1))
			}
		}
		if !t.Run("", func(t *testing.T) {
			d := &duel{scene: newScene(t), t: t, in: bytes.NewReader(b), piece: 1 << 20, buffer: 1000}
			for d.step() {
			}
		}) {
			t.Fatalf("run %d of seed %d: %#v", i, seed, b)
		}
	}
}
