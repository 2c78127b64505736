package tlstest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Numbers gives the client's end of a connection and the configuration of its TLS, by which
// it is seen at the end of the test what has come over TLS 1.3, from whichever process, also
// what the client has not read: each record must be sealed with the next number of its key. A
// number that is used twice would give away what it hides, see RFC 8446, section 5.3. Only
// suites with AES are known; others are not moved. A deadline for reading that has passed
// stays so.
func Numbers(t testing.TB, c net.Conn, config *tls.Config) (net.Conn, *tls.Config) {
	w := &wire{Conn: c}
	w.more.L = &w.mu
	go w.receive()
	config = config.Clone()
	config.KeyLogWriter = (*keyLog)(w)
	t.Cleanup(func() { w.look(t) })
	return w, config
}

// A wire remembers what has come.
type wire struct {
	net.Conn
	more sync.Cond

	mu   sync.Mutex // guards what follows
	come []byte
	read int    // so much of that
	err  error  // what has ended it
	keys string // see KeyLogWriter of crypto/tls
}

func (w *wire) receive() {
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

// The types of records, RFC 8446, section 5.1, and the suites.
const (
	handshakeRecord   = 22
	applicationRecord = 23
	keyUpdate         = 24 // the first byte of such a handshake message
)

// look opens all records but those of the handshake.
func (w *wire) look(t testing.TB) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, after, ok := strings.Cut(w.keys, "SERVER_TRAFFIC_SECRET_0 ")
	if !ok {
		return // not TLS 1.3, or the handshake was not finished
	}
	secret, err := hex.DecodeString(strings.Fields(after)[1])
	if err != nil {
		t.Errorf("the key log has %q: %v", w.keys, err)
		return
	}
	seals := []*sealer{newSealer(secret, sha256.New, 16)}
	if len(secret) == sha512.Size384 {
		seals[0] = newSealer(secret, sha512.New384, 32)
	}
	opened, number := 0, uint64(0)
	for b := w.come; len(b) >= 5 && len(b) >= 5+int(binary.BigEndian.Uint16(b[3:])); {
		record := b[:5+binary.BigEndian.Uint16(b[3:])]
		b = b[len(record):]
		if record[0] != applicationRecord {
			continue
		}
		last := seals[len(seals)-1]
		plain, err := last.open(number, record)
		if err != nil && opened == 0 {
			continue // sealed with the key of the handshake
		}
		if err != nil {
			for k, s := range seals {
				for n := range number + uint64(len(seals))*1000 {
					if _, err := s.open(n, record); err == nil {
						t.Errorf("record %d after the handshake is sealed with number %d of key %d, want %d of %d", opened, n, k, number, len(seals)-1)
						return
					}
				}
			}
			t.Errorf("record %d after the handshake is sealed with no number of the server's keys", opened)
			return
		}
		opened, number = opened+1, number+1
		plain = bytes.TrimRight(plain, "\x00")
		if n := len(plain) - 1; n > 0 && plain[n] == handshakeRecord && plain[0] == keyUpdate {
			seals, number = append(seals, last.next()), 0
		}
	}
}

// A sealer has a key of the server's.
type sealer struct {
	secret []byte
	hash   func() hash.Hash
	size   int
	aead   cipher.AEAD
	iv     []byte
}

func newSealer(secret []byte, hash func() hash.Hash, size int) *sealer {
	s := &sealer{secret: secret, hash: hash, size: size}
	block, err := aes.NewCipher(s.expand("key", size))
	if err == nil {
		s.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(err)
	}
	s.iv = s.expand("iv", s.aead.NonceSize())
	return s
}

func (s *sealer) next() *sealer {
	return newSealer(s.expand("traffic upd", len(s.secret)), s.hash, s.size)
}

// expand is HKDF-Expand-Label of RFC 8446, section 7.1, with no context.
func (s *sealer) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := slices.Concat([]byte{byte(n >> 8), byte(n), byte(len(label))}, []byte(label), []byte{0})
	key, err := hkdf.Expand(s.hash, s.secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return key
}

func (s *sealer) open(number uint64, record []byte) ([]byte, error) {
	nonce := bytes.Clone(s.iv)
	for i := range 8 {
		nonce[len(nonce)-1-i] ^= byte(number >> (8 * i))
	}
	return s.aead.Open(nil, nonce, record[5:], record[:5])
}
