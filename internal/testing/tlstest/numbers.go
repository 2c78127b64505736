package tlstest

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"
)

// Numbers gives the client's end of a connection and the configuration of its TLS, by which
// it is seen at the end of the test what has come over TLS 1.3, from whichever process, also
// what the client has not read: each record must be sealed with the next number of its key. A
// number that is used twice would give away what it hides, see RFC 8446, section 5.3. Only
// suites with AES are known; others are not moved. A deadline for reading that has passed
// stays so.
func Numbers(t testing.TB, c net.Conn, config *tls.Config) (net.Conn, *tls.Config) {
	w := &wire{Conn: c, over: make(chan struct{})}
	w.more.L = &w.mu
	go w.receive()
	config = config.Clone()
	config.KeyLogWriter = (*keyLog)(w)
	t.Cleanup(func() {
		w.end(t)
		w.look(t)
	})
	return w, config
}

// A wire remembers what has come.
type wire struct {
	net.Conn
	over chan struct{} // is closed when nothing more is received
	more sync.Cond

	mu   sync.Mutex // guards what follows
	come []byte
	read int    // so much of that
	err  error  // what has ended it
	keys string // see KeyLogWriter of crypto/tls
}

func (w *wire) receive() {
	defer close(w.over)
	for p := make([]byte, 32<<10); ; {
		n, err := w.Conn.Read(p)
		w.mu.Lock()
		w.come, w.err = append(w.come, p[:n]...), err
		w.more.Broadcast()
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// end has all that was read remembered: what a sender knows to be read may still be on its way
// from Read to come.
func (w *wire) end(t testing.TB) {
	w.Conn.SetReadDeadline(time.Unix(1, 0))
	defer w.Conn.SetReadDeadline(time.Time{})
	select {
	case <-w.over:
	case <-time.After(time.Minute):
		t.Error("the connection is still read a minute after its deadline")
	}
}

func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.read == len(w.come) && w.err == nil {
		w.more.Wait()
	}
	if w.read == len(w.come) {
		return 0, w.err
	}
	n := copy(p, w.come[w.read:])
	w.read += n
	return n, nil
}

type keyLog wire

func (l *keyLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys += string(p)
	return len(p), nil
}

// look opens all records but those of the handshake.
func (w *wire) look(t testing.TB) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first, ok := KeysOf("SERVER_TRAFFIC_SECRET_0", w.keys)
	if !ok {
		return // not TLS 1.3, or the handshake was not finished
	}
	all := []*Keys{first}
	opened, number := 0, uint64(0)
	for b := w.come; len(b) >= 5 && len(b) >= 5+int(binary.BigEndian.Uint16(b[3:])); {
		record := b[:5+binary.BigEndian.Uint16(b[3:])]
		b = b[len(record):]
		if record[0] != ApplicationRecord {
			continue
		}
		last := all[len(all)-1]
		typ, content, err := last.Open(number, record)
		if err != nil && opened == 0 {
			continue // sealed with the key of the handshake
		}
		if err != nil {
			for k, keys := range all {
				for n := range number + 1000 {
					if _, _, err := keys.Open(n, record); err == nil {
						t.Errorf("record %d after the handshake is sealed with number %d of key %d, want %d of %d", opened, n, k, number, len(all)-1)
						return
					}
				}
			}
			t.Errorf("record %d after the handshake is sealed with no number of the server's keys", opened)
			return
		}
		opened, number = opened+1, number+1
		if typ == HandshakeRecord && len(content) > 0 && content[0] == keyUpdate {
			all, number = append(all, last.Next()), 0
		}
	}
}
