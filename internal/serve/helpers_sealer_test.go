//go:build linux

package serve

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/testing/tlstest"
	"github.com/julofinance/grace/v3/internal/testing/wait"
)

// A sealer is the client of a TLS 1.3 connection that writes records which crypto/tls would
// not write, and reads what comes record by record: each has to be sealed with the next
// number of the server's key.
type sealer struct {
	t       *testing.T
	tcp     net.Conn // the client's end
	conn    net.Conn // the same, looked at by tlstest.Numbers
	out, in *tlstest.Keys
	outSeq  uint64
	inSeq   uint64
}

// newSealer shakes hands over c.
func newSealer(t *testing.T, c net.Conn, config *tls.Config) *sealer {
	t.Helper()
	var keys bytes.Buffer
	below, config := tlstest.Numbers(t, c, config)
	config.KeyLogWriter = io.MultiWriter(&keys, config.KeyLogWriter)
	over := tls.Client(below, config) // without a ClientSessionCache: the server sends no tickets
	if err := over.Handshake(); err != nil {
		t.Fatal(err)
	}
	if suite := over.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("%s was agreed on: without instructions for AES crypto/tls prefers another one", tls.CipherSuiteName(suite))
	}
	s := &sealer{t: t, tcp: c, conn: below}
	var ok, both bool
	s.out, ok = tlstest.KeysOf("CLIENT_TRAFFIC_SECRET_0", keys.String())
	s.in, both = tlstest.KeysOf("SERVER_TRAFFIC_SECRET_0", keys.String())
	if !ok || !both {
		t.Fatalf("the secrets are not in %q", &keys)
	}
	return s
}

// record gives the next one. Behind a KeyUpdate the next key is used.
func (s *sealer) record(typ byte, content string) []byte {
	r := s.out.Seal(s.outSeq, typ, []byte(content))
	s.outSeq++
	return r
}

// rekey goes on to the next key.
func (s *sealer) rekey() { s.out, s.outSeq = s.out.Next(), 0 }

// data, alert and update give records that follow each other; so do get and empty.
func (s *sealer) data(content string) []byte { return s.record(tlstest.ApplicationRecord, content) }
func (s *sealer) alert(level, what byte) []byte {
	return s.record(tlstest.AlertRecord, string([]byte{level, what}))
}
func (s *sealer) get(path string) []byte        { return s.data(requestOf(path)) }
func (s *sealer) message(content string) []byte { return s.record(tlstest.HandshakeRecord, content) }
func (s *sealer) update(ask byte) (record []byte) {
	record = s.message(string([]byte{24, 0, 0, 1, ask}))
	s.rekey()
	return record
}

// padded is a record of data with zeros behind.
func (s *sealer) padded(content string, zeros int) []byte {
	return s.record(0, content+string(rune(tlstest.ApplicationRecord))+strings.Repeat("\x00", zeros-1))
}

func requestOf(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: a.test\r\n\r\n" }

// times gives n records in a row.
func times(n int, record func() []byte) []byte {
	var all []byte
	for range n {
		all = append(all, record()...)
	}
	return all
}

// send sends b. A server that has closed lets that fail, which is seen by what is read.
func (s *sealer) send(b []byte) { s.conn.Write(b) }

// receive gives what has come until the end, or until that ends with this: data as it is, an
// alert as <level what>; and how many changes of keys there were, since those may come at
// different places between the data.
func (s *sealer) receive(until string) (got string, updates int) {
	s.t.Helper()
	for until == "" || !strings.HasSuffix(got, until) {
		head := make([]byte, 5)
		_, err := io.ReadFull(s.conn, head)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Fatalf("after %q nothing comes for %v, not even the end", got, wait.Limit)
		}
		if err != nil { // may be a reset: a server that closes has not read all
			break
		}
		record := append(head, make([]byte, binary.BigEndian.Uint16(head[3:]))...)
		if _, err := io.ReadFull(s.conn, record[5:]); err != nil {
			s.t.Fatalf("after %q half a record has come: %v", got, err)
		}
		typ, content, err := s.in.Open(s.inSeq, record)
		if err != nil {
			s.t.Fatalf("after %q a record has come that number %d does not open: %v", got, s.inSeq, err)
		}
		s.inSeq++
		switch typ {
		case tlstest.ApplicationRecord:
			got += string(content)
		case tlstest.AlertRecord:
			got += fmt.Sprint("<", content, ">")
		case tlstest.HandshakeRecord:
			updates++
			s.in, s.inSeq = s.in.Next(), 0
		default:
			s.t.Fatalf("after %q a record of type %d has come", got, typ)
		}
	}
	return got, updates
}
