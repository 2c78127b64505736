package tls13

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// records decrypts what our server has written, as a client would.
func (sc *scene) records(t *testing.T) (types []byte, contents [][]byte) {
	t.Helper()
	h := half{suite: sc.serverFirst.suite}
	check(t, h.set(bytes.Clone(sc.serverFirst.secret), sc.serverFirst.seq))
	for b := bytes.Clone(sc.oursWire.out.Bytes()); len(b) > 0; {
		n := headerLen + (int(b[3])<<8 | int(b[4]))
		p := get(h.open(b[:n]))(t)
		b = b[n:]
		types, contents = append(types, p[len(p)-1]), append(contents, p[:len(p)-1])
		if p[len(p)-1] == recordHandshake {
			check(t, h.update())
		}
	}
	return types, contents
}

// ended sees that the connection ended with this error and this fatal alert, and that
// nothing is written after it.
func (sc *scene) ended(t *testing.T, err error, want string, alert tls.AlertError) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
	types, contents := sc.records(t)
	if n := len(types); n == 0 || types[n-1] != recordAlert || !bytes.Equal(contents[n-1], []byte{2, byte(alert)}) {
		t.Errorf("records of types %v, the last one not alert %d", types, alert)
	}
	wrote := sc.oursWire.out.Len()
	if _, e := sc.ours.Read(make([]byte, 1)); e == nil || e.Error() != err.Error() {
		t.Errorf("the next Read: %v, not %v", e, err)
	}
	if _, e := sc.ours.Write([]byte("x")); e == nil {
		t.Error("a Write after a fatal alert has succeeded")
	}
	if _, e := sc.ours.Extract(); e == nil {
		t.Error("a connection that has failed was extracted")
	}
	sc.ours.Close()
	if sc.oursWire.out.Len() != wrote {
		t.Error("something was written after a fatal alert")
	}
}

// TestClientBreaksTheRules: RFC 8446, 5 and 6.
func TestClientBreaksTheRules(t *testing.T) {
	keyUpdate := []byte{handKeyUpdate, 0, 0, 1, 0}
	for name, c := range map[string]struct {
		send  func(t *testing.T, p *peer) []byte
		want  string
		alert tls.AlertError
	}{
		"bad MAC": {func(t *testing.T, p *peer) []byte {
			b := p.record(t, recordData, []byte("x"), 0)
			b[len(b)-1]++
			return b
		}, "bad record MAC", alertBadRecordMAC},
		"a number twice": {func(t *testing.T, p *peer) []byte {
			b := p.record(t, recordData, []byte("x"), 0)
			return append(b, b...)
		}, "bad record MAC", alertBadRecordMAC},
		"not encrypted": {func(t *testing.T, p *peer) []byte {
			return []byte{recordAlert, 3, 3, 0, 2, 1, 0}
		}, "bad record MAC", alertBadRecordMAC},
		"no content at all": {func(t *testing.T, p *peer) []byte {
			check(t, p.useNonce())
			return p.sealed(recordData, nil)
		}, "unexpected message", alertUnexpectedMessage},
		"zeros only": {func(t *testing.T, p *peer) []byte {
			return p.record(t, 0, nil, 40)
		}, "unexpected message", alertUnexpectedMessage},
		"outer type": {func(t *testing.T, p *peer) []byte {
			check(t, p.useNonce())
			return p.sealed(recordHandshake, append(bytes.Clone(keyUpdate), recordHandshake))
		}, "unexpected message", alertUnexpectedMessage},
		"inner type": {func(t *testing.T, p *peer) []byte {
			return p.record(t, 99, []byte("x"), 0)
		}, "unexpected message", alertUnexpectedMessage},
		"version": {func(t *testing.T, p *peer) []byte {
			return []byte("GET / HTTP/1.1\r\n")
		}, "with version 4554", alertProtocolVersion},
		"too much in a record": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordData, make([]byte, maxPlaintext+1), 0)
		}, "record overflow", alertRecordOverflow},
		"too much padding": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordData, make([]byte, maxPlaintext), 1)
		}, "record overflow", alertRecordOverflow},
		"too long": {func(t *testing.T, p *peer) []byte {
			return []byte{recordData, 3, 3, (maxCiphertext + 1) >> 8, (maxCiphertext + 1) & 255}
		}, "a record of 16641 bytes", alertRecordOverflow},
		"ClientHello": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordHandshake, []byte{1, 0, 0, 0}, 0)
		}, "message of type 1 after", alertUnexpectedMessage},
		"Certificate without an end": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordHandshake, []byte{11}, 0)
		}, "message of type 11 after", alertUnexpectedMessage},
		"empty handshake record": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordHandshake, nil, 0)
		}, "unexpected message", alertUnexpectedMessage},
		"KeyUpdate of two bytes": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordHandshake, []byte{handKeyUpdate, 0, 0, 2}, 0)
		}, "error decoding message", alertDecodeError},
		"KeyUpdate with 2": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordHandshake, []byte{handKeyUpdate, 0, 0, 1, 2}, 0)
		}, "error decoding message", alertDecodeError},
		"two KeyUpdates in a record": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordHandshake, append(bytes.Clone(keyUpdate), keyUpdate...), 0)
		}, "behind a key update", alertUnexpectedMessage},
		"data within a message": {func(t *testing.T, p *peer) []byte {
			return append(p.record(t, recordHandshake, keyUpdate[:3], 0), p.record(t, recordData, []byte("x"), 0)...)
		}, "unexpected message", alertUnexpectedMessage},
		"alert of one byte": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordAlert, []byte{1}, 0)
		}, "unexpected message", alertUnexpectedMessage},
		"two alerts in a record": {func(t *testing.T, p *peer) []byte {
			return p.record(t, recordAlert, []byte{1, 90, 1, 0}, 0)
		}, "unexpected message", alertUnexpectedMessage},
		"change_cipher_spec of two bytes": {func(t *testing.T, p *peer) []byte {
			return []byte{recordChangeCipherSpec, 3, 3, 0, 2, 1, 1}
		}, "error decoding message", alertDecodeError},
		"old key after KeyUpdate": {func(t *testing.T, p *peer) []byte {
			return append(p.record(t, recordHandshake, keyUpdate, 0), p.record(t, recordData, []byte("x"), 0)...)
		}, "bad record MAC", alertBadRecordMAC},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			sc.oursWire.in.Write(c.send(t, sc.client))
			_, err := drain(sc.ours, 100)
			sc.ended(t, err, c.want, c.alert)
		})
	}
}

// TestUselessRecords: a client may not keep the server busy with records without data.
func TestUselessRecords(t *testing.T) {
	for name, send := range map[string]func(p *peer) []byte{
		"empty":              func(p *peer) []byte { return p.record(t, recordData, nil, 0) },
		"padding only":       func(p *peer) []byte { return p.record(t, recordData, nil, 1000) },
		"user_canceled":      func(p *peer) []byte { return p.record(t, recordAlert, []byte{1, 90}, 0) },
		"change_cipher_spec": func(p *peer) []byte { return []byte{recordChangeCipherSpec, 3, 3, 0, 1, 1} },
		"key update": func(p *peer) []byte {
			b := p.record(t, recordHandshake, []byte{handKeyUpdate, 0, 0, 1, 1}, 0)
			check(t, p.update())
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			for range 3 {
				for range maxUseless {
					sc.oursWire.in.Write(send(sc.client))
				}
				sc.oursWire.in.Write(sc.client.record(t, recordData, []byte("x"), 0))
				if got, err := drain(sc.ours, 100); string(got) != "x" || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("after %d: %q, %v", maxUseless, got, err)
				}
			}
			for range maxUseless + 1 {
				sc.oursWire.in.Write(send(sc.client))
			}
			_, err := drain(sc.ours, 100)
			sc.ended(t, err, "more than 16 records in a row without data", alertUnexpectedMessage)
		})
	}
}

func TestClientEnds(t *testing.T) {
	for name, c := range map[string]struct {
		send func(sc *scene)
		want string
	}{
		"close_notify":            {func(sc *scene) { sc.oursWire.in.Write(sc.client.record(t, recordAlert, []byte{1, 0}, 0)) }, "EOF"},
		"fatal close_notify":      {func(sc *scene) { sc.oursWire.in.Write(sc.client.record(t, recordAlert, []byte{2, 0}, 9)) }, "EOF"},
		"a warning is an error":   {func(sc *scene) { sc.oursWire.in.Write(sc.client.record(t, recordAlert, []byte{1, 42}, 0)) }, "remote error: tls: bad certificate"},
		"internal error":          {func(sc *scene) { sc.oursWire.in.Write(sc.client.record(t, recordAlert, []byte{2, 80}, 0)) }, "remote error: tls: internal error"},
		"without close_notify":    {func(sc *scene) { sc.oursWire.end = io.EOF }, "EOF"},
		"in the middle":           {func(sc *scene) { sc.oursWire.in.Write([]byte{23, 3}); sc.oursWire.end = io.EOF }, "unexpected EOF"},
		"in the middle, later on": {func(sc *scene) { sc.oursWire.in.Write([]byte{23, 3, 3, 0, 20, 1}); sc.oursWire.end = io.EOF }, "unexpected EOF"},
		"data behind close_notify": {func(sc *scene) {
			sc.oursWire.in.Write(sc.client.record(t, recordAlert, []byte{1, 0}, 0))
			sc.oursWire.in.Write(sc.client.record(t, recordData, []byte("too late"), 0))
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			sc.oursWire.in.Write(sc.client.record(t, recordData, []byte("before"), 0))
			c.send(sc)
			for range 2 { // the error stays
				got, err := drain(sc.ours, 100)
				if string(got) != "before" && got != nil || err == nil || err.Error() != c.want {
					t.Errorf("%q, %v; want error %s", got, err, c.want)
				}
			}
			if _, err := sc.ours.Extract(); err == nil {
				t.Error("extracted after the end")
			}
			if c.want == "EOF" { // the other direction is still open
				get(sc.ours.Write([]byte("answer")))(t)
				check(t, sc.ours.Close())
				types, contents := sc.records(t)
				if !bytes.Equal(types, []byte{recordData, recordAlert}) || !bytes.Equal(contents[1], []byte{1, 0}) {
					t.Errorf("records of types %v", types)
				}
			}
		})
	}
}

func TestCloseWrite(t *testing.T) {
	sc := newScene(t)
	check(t, sc.ours.CloseWrite())
	check(t, sc.ours.CloseWrite())
	if _, err := sc.ours.Write([]byte("x")); err == nil {
		t.Error("a Write after CloseWrite has succeeded")
	}
	// What the client sends on is read, and nothing is answered.
	sc.oursWire.in.Write(sc.client.record(t, recordHandshake, []byte{handKeyUpdate, 0, 0, 1, 1}, 0))
	check(t, sc.client.update())
	sc.oursWire.in.Write(sc.client.record(t, recordData, []byte("more"), 0))
	sc.oursWire.in.Write([]byte("nonsense"))
	got, err := drain(sc.ours, 100)
	if string(got) != "more" || err == nil {
		t.Errorf("%q, %v", got, err)
	}
	check(t, sc.ours.Close())
	if types, _ := sc.records(t); !bytes.Equal(types, []byte{recordAlert}) {
		t.Errorf("records of types %v were written, not one close_notify", types)
	}
	if err := sc.ours.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close: %v", err)
	}
}

// TestKeyIsChangedInTime: RFC 8446, 5.5.
func TestKeyIsChangedInTime(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	c := p.move(t)
	if c.out.limit != 1<<24 {
		t.Errorf("a key seals %d records", c.out.limit)
	}
	c.out.limit = 5
	last := c.out.seq
	updates := 0
	for i := range 23 {
		say(t, c, p.client, fmt.Sprint("message ", i))
		if c.out.seq > c.out.limit+1 {
			t.Fatalf("number %d was used, with a limit of %d", c.out.seq-1, c.out.limit)
		}
		if c.out.seq < last {
			updates++
		}
		last = c.out.seq
	}
	if updates < 4 {
		t.Errorf("%d updates for 23 records", updates)
	}
	talk(t, p.client, c)
}

func TestNumbersEnd(t *testing.T) {
	sc := newScene(t)
	s := get(sc.ours.Extract())(t)
	s.In.Seq, s.Out.Seq = math.MaxUint64, math.MaxUint64
	c := sc.conn(t, s)
	c.out.limit = math.MaxUint64
	if _, err := c.Write([]byte("x")); err != errSequence || sc.oursWire.out.Len() > 0 {
		t.Errorf("a Write with the last number: %v, %d bytes on the wire", err, sc.oursWire.out.Len())
	}
	sc.oursWire.in.Write(make([]byte, 100)) // whatever is in it
	sc.oursWire.in.Reset()
	sc.oursWire.in.Write(sc.client.record(t, recordData, []byte("x"), 0))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a record was read with the last number")
	}
	c = sc.conn(t, func() State {
		s := plainState()
		s.Out.Seq = math.MaxUint64 - 1
		return s
	}())
	get(c.Write([]byte("x")))(t) // a KeyUpdate with the last but one, and then the next key
	if c.out.seq != 1 {
		t.Errorf("the next number is %d", c.out.seq)
	}
}

// TestWriteDeadline: a Write that has timed out can't be repeated, since a part of its
// record is on the wire.
func TestWriteDeadline(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	c := p.move(t)
	c.SetWriteDeadline(time.Unix(1, 0))
	_, err := c.Write([]byte("x"))
	var ne interface{ Timeout() bool }
	var te interface{ Temporary() bool }
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() || !errors.As(err, &te) || te.Temporary() {
		t.Errorf("a Write with a deadline in the past: %v", err)
	}
	check(t, c.SetWriteDeadline(time.Now().Add(patience)))
	if _, again := c.Write([]byte("x")); again != err {
		t.Errorf("the next Write: %v, not %v", again, err)
	}
	if _, err := c.Extract(); err == nil {
		t.Error("extracted after a Write has failed")
	}
	if len(p.below.written()) == 0 {
		t.Fatal("the tap has seen nothing")
	}
	before := len(p.below.written())
	check(t, c.Close())
	if len(p.below.written()) != before {
		t.Error("something was written after a Write has failed")
	}
}

// TestReadDeadline: a Read that has timed out can be repeated.
func TestReadDeadline(t *testing.T) {
	sc := newScene(t)
	var want []byte
	for i := range 5 {
		text := strings.Repeat(fmt.Sprint(i), 1000*i*i+1)
		want = append(want, text...)
		for _, b := range sc.client.record(t, recordData, []byte(text), i) {
			sc.oursWire.in.WriteByte(b)
			if n, err := sc.ours.Read(make([]byte, 1)); err == nil {
				want = want[n:]
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
	}
	if got, _ := drain(sc.ours, 1000); !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came", len(got), len(want))
	}
}

func TestExtractWhileInUse(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	c := p.move(t)
	c.in.Lock()
	if _, err := c.Extract(); err == nil || !strings.Contains(err.Error(), "a Read is under way") {
		t.Error(err)
	}
	c.in.Unlock()
	c.out.Lock()
	if _, err := c.Extract(); err == nil || !strings.Contains(err.Error(), "a Write is under way") {
		t.Error(err)
	}
	c.out.Unlock()
	talk(t, p.client, c)
	check(t, c.CloseWrite())
	if _, err := c.Extract(); err == nil {
		t.Error("extracted after CloseWrite")
	}
}

// TestCloseEndsAWrite that the client does not read.
func TestCloseEndsAWrite(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	c := p.move(t)
	c.SetDeadline(time.Time{})
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	for c.out.TryLock() { // until the Write has it
		c.out.Unlock()
	}
	check(t, c.Close())
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("the Write returns %v", err)
		}
	case <-time.After(patience):
		t.Fatalf("Close has not ended the Write within %v", patience)
	}
}

// TestBothWaysAtOnce: Reads, Writes and key updates of both ends at the same time. The
// client answers each update; the race detector looks on.
func TestBothWaysAtOnce(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	c := p.move(t)
	const size, chunk = 1 << 20, 1000
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	run := func(f func() error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(); err != nil {
				errs <- err
			}
		}()
	}
	send := func(w io.Writer) func() error {
		return func() error {
			for range size / chunk {
				if _, err := w.Write(make([]byte, chunk)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	receive := func(r io.Reader) func() error {
		return func() error {
			_, err := io.CopyN(io.Discard, r, size/chunk*chunk)
			return err
		}
	}
	run(send(p.client))
	run(receive(p.client))
	run(send(c))
	run(receive(c))
	run(func() error {
		for i := range 10 {
			if err := c.updateKeys(i%2 == 0); err != nil {
				return err
			}
		}
		return nil
	})
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	talk(t, p.client, c)
}

// TestRecordSizes: the records of our Write are as large as those of crypto/tls on a new
// connection.
func TestRecordSizes(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	s := get(Extract(p.server))(t)
	mark := len(p.below.written())
	sizes := func(b []byte) (n []int) {
		for len(b) > 0 {
			l := headerLen + (int(b[3])<<8 | int(b[4]))
			n, b = append(n, l), b[l:]
		}
		return n
	}
	text := strings.Repeat("x", 100<<10)
	say(t, p.server, p.client, text)
	oracle := sizes(p.below.written()[mark:])
	w := &script{}
	c := resume(t, w, s)
	get(c.Write([]byte(text)))(t)
	if ours := sizes(w.out.Bytes()); fmt.Sprint(ours) != fmt.Sprint(oracle) {
		t.Errorf("records of ours %v, of crypto/tls %v", ours, oracle)
	}
	get(c.Write([]byte(text)))(t)
	get(c.Write(make([]byte, 4*maxPlaintext)))(t)
	for _, n := range sizes(w.out.Bytes())[len(sizes(w.out.Bytes()))-4:] {
		if n != headerLen+maxPlaintext+1+tagLen {
			t.Errorf("after %d bytes a record of %d bytes", 2*len(text), n)
		}
	}
}

func TestEmptyCalls(t *testing.T) {
	sc := newScene(t)
	if n, err := sc.ours.Read(nil); n != 0 || err != nil {
		t.Errorf("Read(nil): %d, %v", n, err)
	}
	if n, err := sc.ours.Write(nil); n != 0 || err != nil || sc.oursWire.out.Len() > 0 {
		t.Errorf("Write(nil): %d, %v", n, err)
	}
	if sc.ours.NetConn() != net.Conn(sc.oursWire) {
		t.Error("NetConn is another connection")
	}
	check(t, sc.ours.Close())
	if _, err := sc.ours.Write(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}
