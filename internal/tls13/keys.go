package tls13

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"net"
)

// A suite is a cipher suite that this package knows.
type suite struct {
	id     uint16
	keyLen int
	size   int // of the hash, and so of a traffic secret
	hash   func() hash.Hash
}

var suites = []*suite{
	{tls.TLS_AES_128_GCM_SHA256, 16, sha256.Size, sha256.New},
	{tls.TLS_AES_256_GCM_SHA384, 32, sha512.Size384, sha512.New384},
}

func suiteOf(id uint16) (*suite, error) {
	for _, s := range suites {
		if s.id == id {
			return s, nil
		}
	}
	return nil, fmt.Errorf("tls13: cipher suite %s: only those with AES-GCM can be moved", tls.CipherSuiteName(id))
}

const (
	ivLen     = 12
	headerLen = 5
	tagLen    = 16

	maxPlaintext  = 1 << 14            // RFC 8446, 5.1
	maxCiphertext = maxPlaintext + 256 // RFC 8446, 5.2
	maxRecord     = headerLen + maxCiphertext

	// sealLimit is how many records are sealed with one key, full ones as RFC 8446, 5.5
	// counts: 2^24.5 of them keep AES-GCM's margin of 2^-57. crypto/tls has no such
	// limit.
	sealLimit = 1 << 24
)

// expandLabel is HKDF-Expand-Label with an empty context: RFC 8446, 7.1.
func (s *suite) expandLabel(secret []byte, label string, n int) ([]byte, error) {
	info := make([]byte, 0, 32)
	info = binary.BigEndian.AppendUint16(info, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

var (
	// errMoved is what a Conn answers once its keys were taken out.
	errMoved = fmt.Errorf("tls13: the connection was moved: %w", net.ErrClosed)

	errSequence = errors.New("tls13: all sequence numbers of this key are used up")
	errOpen     = errors.New("tls13: a record can't be decrypted")
)

// A half is one direction of a connection: its keys and its sequence number. The
// owner's lock guards it.
type half struct {
	suite  *suite
	secret []byte
	aead   cipher.AEAD // nil once the keys were taken out
	iv     [ivLen]byte
	seq    uint64      // of the next record
	nonce  [ivLen]byte // here and not on the stack: what an interface is given escapes
}

// set makes secret, of which the half becomes the owner, the one in use.
func (h *half) set(secret []byte, seq uint64) error {
	key, err := h.suite.expandLabel(secret, "key", h.suite.keyLen)
	if err != nil {
		return fmt.Errorf("tls13: key: %w", err)
	}
	defer clear(key)
	iv, err := h.suite.expandLabel(secret, "iv", ivLen)
	if err != nil {
		return fmt.Errorf("tls13: iv: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return fmt.Errorf("tls13: AES: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return fmt.Errorf("tls13: GCM: %w", err)
	}
	copy(h.iv[:], iv)
	clear(iv)
	h.secret, h.aead, h.seq = secret, aead, seq
	return nil
}

// update goes on to the next secret: RFC 8446, 7.2.
func (h *half) update() error {
	if h.aead == nil {
		return errMoved
	}
	next, err := h.suite.expandLabel(h.secret, "traffic upd", h.suite.size)
	if err != nil {
		return fmt.Errorf("tls13: key update: %w", err)
	}
	last := h.secret
	if err := h.set(next, 0); err != nil {
		return err
	}
	clear(last)
	return nil
}

// take gives the secret and the sequence number away, and leaves nothing to go on with.
func (h *half) take() Half {
	taken := Half{Secret: h.secret, Seq: h.seq}
	*h = half{suite: h.suite}
	return taken
}

// useNonce makes the nonce of the next record (RFC 8446, 5.3), which is thereby used.
func (h *half) useNonce() error {
	switch {
	case h.aead == nil:
		return errMoved
	case h.seq == math.MaxUint64:
		return errSequence
	}
	h.nonce = h.iv
	tail := h.nonce[ivLen-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^h.seq)
	h.seq++
	return nil
}

// seal appends to b the record of this type that carries p, at most maxPlaintext bytes.
func (h *half) seal(b []byte, typ byte, p []byte) ([]byte, error) {
	if err := h.useNonce(); err != nil {
		return b, err
	}
	n := len(p) + 1 + tagLen
	start := len(b)
	b = append(b, recordData, 3, 3, byte(n>>8), byte(n))
	inner := len(b)
	b = append(b, p...)
	b = append(b, typ)
	return h.aead.Seal(b[:inner], h.nonce[:], b[inner:], b[start:inner]), nil
}

// open decrypts a record in place. The caller deals with the padding.
func (h *half) open(record []byte) ([]byte, error) {
	if len(record) < headerLen+tagLen {
		return nil, errOpen
	}
	if err := h.useNonce(); err != nil {
		return nil, err
	}
	body := record[headerLen:]
	p, err := h.aead.Open(body[:0], h.nonce[:], body, record[:headerLen])
	if err != nil {
		return nil, errOpen
	}
	return p, nil
}
