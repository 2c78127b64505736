package tls13

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Types of records, the handshake message that a client may send, and alerts: RFC 8446,
// 5.1, 4.6.3 and 6.
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
	recordData             = 23

	handKeyUpdate = 24
	keyUpdateLen  = 5

	alertCloseNotify       tls.AlertError = 0
	alertUnexpectedMessage tls.AlertError = 10
	alertBadRecordMAC      tls.AlertError = 20
	alertRecordOverflow    tls.AlertError = 22
	alertDecodeError       tls.AlertError = 50
	alertProtocolVersion   tls.AlertError = 70
	alertInternalError     tls.AlertError = 80
	alertUserCanceled      tls.AlertError = 90
)

// maxUseless is how many records in a row may bring no data: empty ones, key updates,
// warnings. crypto/tls has the same limit.
const maxUseless = 16

// input is what the reading direction has besides its keys.
type input struct {
	err error // the first one that lasts
	// raw[start:end] is from the wire and not decrypted. plain, which is a part of raw in
	// front of that, is decrypted and not returned yet; raw is not moved before it is.
	raw        []byte
	start, end int
	plain      []byte
	hand       []byte // the beginning of a handshake message
	useless    int    // records in a row without data
}

// Sizes of the buffer that is read into: one for requests without much of a body, and
// one for two of the largest records.
const (
	smallBuffer = 2 << 10
	largeBuffer = 2 * maxRecord

	// leastRoom is how much room there should be for a Read of the connection below.
	leastRoom = 512
)

// Read reads what the client has sent, from one record at most.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.in.Lock()
	defer c.in.Unlock()
	for len(c.in.plain) == 0 {
		if c.in.err != nil {
			return 0, c.in.err
		}
		if err := c.readRecord(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.in.plain)
	c.in.plain = c.in.plain[n:]
	return n, nil
}

// readRecord reads a record and does what it says. c.in is locked and in.plain empty.
func (c *Conn) readRecord() error {
	if err := c.fill(headerLen); err != nil {
		return err
	}
	header := c.in.raw[c.in.start:c.in.end]
	version, n := binary.BigEndian.Uint16(header[1:]), int(binary.BigEndian.Uint16(header[3:]))
	if version != tls.VersionTLS12 { // RFC 8446, 5.1
		c.sendAlert(alertProtocolVersion)
		return c.in.fail(fmt.Errorf("tls13: received a record with version %x instead of %x", version, tls.VersionTLS12))
	}
	if n > maxCiphertext {
		c.sendAlert(alertRecordOverflow)
		return c.in.fail(fmt.Errorf("tls13: received a record of %d bytes; at most %d are allowed", n, maxCiphertext))
	}
	if err := c.fill(headerLen + n); err != nil {
		return err
	}
	record := c.in.raw[c.in.start : c.in.start+headerLen+n]
	c.in.start += len(record)
	typ, data, alert := c.unprotect(record)
	if alert != 0 {
		return c.in.fail(c.sendAlert(alert))
	}
	if typ == recordData && len(data) > 0 {
		c.in.useless = 0
	}
	// Nothing may come between the parts of a handshake message: RFC 8446, 5.1.
	if typ != recordHandshake && len(c.in.hand) > 0 {
		return c.in.fail(c.sendAlert(alertUnexpectedMessage))
	}
	switch typ {
	case recordData:
		if len(data) == 0 {
			return c.ignore()
		}
		c.in.plain = data
		return nil
	case recordAlert:
		return c.onAlert(data)
	case recordHandshake:
		return c.onHandshake(data)
	case recordChangeCipherSpec:
		// One that came too late for the handshake. crypto/tls ignores it always.
		if len(data) != 1 || data[0] != 1 {
			return c.in.fail(c.sendAlert(alertDecodeError))
		}
		return c.ignore()
	}
	return c.in.fail(c.sendAlert(alertUnexpectedMessage))
}

// unprotect decrypts a record and takes the padding off: RFC 8446, 5.2 and 5.4. alert
// is the one to be sent if it can't, or zero.
func (c *Conn) unprotect(record []byte) (typ byte, data []byte, alert tls.AlertError) {
	outer := record[0]
	if outer == recordChangeCipherSpec { // never encrypted
		return outer, record[headerLen:], 0
	}
	inner, err := c.in.open(record)
	switch {
	case err != nil:
		return 0, nil, alertBadRecordMAC
	case outer != recordData:
		return 0, nil, alertUnexpectedMessage
	case len(inner) > maxPlaintext+1:
		return 0, nil, alertRecordOverflow
	}
	for n := len(inner) - 1; n >= 0; n-- {
		if inner[n] != 0 {
			return inner[n], inner[:n], 0
		}
	}
	return 0, nil, alertUnexpectedMessage
}

// ignore counts a record without data.
func (c *Conn) ignore() error {
	c.in.useless++
	if c.in.useless > maxUseless {
		c.sendAlert(alertUnexpectedMessage)
		return c.in.fail(fmt.Errorf("tls13: received more than %d records in a row without data", maxUseless))
	}
	return nil
}

func (c *Conn) onAlert(data []byte) error {
	if len(data) != 2 {
		return c.in.fail(c.sendAlert(alertUnexpectedMessage))
	}
	// The level says nothing in TLS 1.3: RFC 8446, 6.
	switch a := tls.AlertError(data[1]); a {
	case alertCloseNotify:
		return c.in.fail(io.EOF)
	case alertUserCanceled: // to be followed by close_notify, but see JDK-8323517
		return c.ignore()
	default:
		return c.in.fail(&net.OpError{Op: "remote error", Err: a})
	}
}

// onHandshake deals with a part of a handshake message, or with several. Only KeyUpdate
// may come: tickets come from servers, and this one asks for no certificate after the
// handshake.
func (c *Conn) onHandshake(data []byte) error {
	if len(data) == 0 {
		return c.in.fail(c.sendAlert(alertUnexpectedMessage))
	}
	c.in.hand = append(c.in.hand, data...)
	for len(c.in.hand) > 0 {
		m := c.in.hand
		if m[0] != handKeyUpdate {
			c.sendAlert(alertUnexpectedMessage)
			return c.in.fail(fmt.Errorf("tls13: received a handshake message of type %d after the handshake", m[0]))
		}
		if len(m) < 4 {
			return nil
		}
		if n := int(m[1])<<16 | int(m[2])<<8 | int(m[3]); n != keyUpdateLen-4 {
			return c.in.fail(c.sendAlert(alertDecodeError))
		}
		if len(m) < keyUpdateLen {
			return nil
		}
		c.in.hand = m[keyUpdateLen:]
		if err := c.onKeyUpdate(m[4]); err != nil {
			return err
		}
	}
	c.in.hand = nil
	return nil
}

// onKeyUpdate deals with a KeyUpdate: RFC 8446, 4.6.3.
func (c *Conn) onKeyUpdate(ask byte) error {
	if err := c.ignore(); err != nil {
		return err
	}
	if ask > 1 {
		return c.in.fail(c.sendAlert(alertDecodeError))
	}
	if ask == 1 {
		c.out.Lock()
		if c.out.err == nil && !c.out.closeSent {
			c.rekey(false) // an error is that of the next Write
		}
		c.out.Unlock()
	}
	// A message in the same record was sealed with the key that ends here: RFC 8446, 5.1.
	if len(c.in.hand) > 0 {
		c.sendAlert(alertUnexpectedMessage)
		return c.in.fail(errors.New("tls13: received a handshake message behind a key update"))
	}
	if err := c.in.update(); err != nil {
		c.sendAlert(alertInternalError)
		return c.in.fail(err)
	}
	return nil
}

// sendAlert sends an alert and returns it as an error.
func (c *Conn) sendAlert(a tls.AlertError) error {
	c.out.Lock()
	defer c.out.Unlock()
	return c.alert(a)
}

// fill reads until n bytes of the wire are there. After a timeout it can be called again,
// and none of those that have come are lost.
func (c *Conn) fill(n int) error {
	for c.in.end-c.in.start < n {
		c.in.makeRoom(n)
		m, err := c.conn.Read(c.in.raw[c.in.end:cap(c.in.raw)])
		c.in.end += m
		if c.in.end-c.in.start >= n || err == nil {
			continue // the error comes again
		}
		if err == io.EOF && c.in.end > c.in.start {
			err = io.ErrUnexpectedEOF
		}
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return err
		}
		return c.in.fail(err)
	}
	return nil
}

// makeRoom sees that n bytes from start on fit into raw, and that there is room behind
// what it has. in.plain is empty.
func (in *input) makeRoom(n int) {
	if in.start == in.end {
		in.start, in.end = 0, 0
	}
	raw := in.raw[:cap(in.raw)]
	if len(raw) < n+leastRoom {
		size := smallBuffer
		if n+leastRoom > smallBuffer {
			size = largeBuffer
		}
		raw = make([]byte, size)
	} else if in.start+n <= len(raw) && len(raw)-in.end >= leastRoom {
		in.raw = raw
		return
	}
	in.end = copy(raw, in.raw[in.start:in.end])
	in.start, in.raw = 0, raw
}

// fail notes the error that ends reading, and returns it.
func (in *input) fail(err error) error {
	in.err = err
	return err
}
