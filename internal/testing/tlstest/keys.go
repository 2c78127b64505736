package tlstest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"slices"
	"strings"
)

// The types of records, RFC 8446, section 5.1, and of the one message that changes keys.
const (
	AlertRecord       = 21
	HandshakeRecord   = 22
	ApplicationRecord = 23
	keyUpdate         = 24
)

// KeyUpdate is the content of a handshake record that changes the sender's keys, and asks the
// other side to change its own.
var KeyUpdate = []byte{keyUpdate, 0, 0, 1, 1}

// Keys are those with which one side of TLS 1.3 seals its records, for tests that look at
// what is on the wire, or write what crypto/tls can't be made to write. They know no more than
// RFC 8446 says, and nothing of package tls13. The suites are those with AES; what
// TLS_CHACHA20_POLY1305_SHA256 has sealed they don't open.
type Keys struct {
	secret []byte
	hash   func() hash.Hash
	size   int // of the key
	aead   cipher.AEAD
	iv     []byte
}

// KeysOf gives those of the secret with this label in what KeyLogWriter of crypto/tls was
// given.
func KeysOf(label, log string) (*Keys, bool) {
	_, after, ok := strings.Cut(log, label+" ")
	fields := strings.Fields(after)
	if !ok || len(fields) < 2 {
		return nil, false
	}
	secret, err := hex.DecodeString(fields[1])
	if err != nil {
		return nil, false
	}
	if len(secret) == sha512.Size384 {
		return newKeys(secret, sha512.New384, 32), true
	}
	return newKeys(secret, sha256.New, 16), true
}

func newKeys(secret []byte, hash func() hash.Hash, size int) *Keys {
	k := &Keys{secret: secret, hash: hash, size: size}
	block, err := aes.NewCipher(k.expand("key", size))
	if err == nil {
		k.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(err) // of a size that was given here
	}
	k.iv = k.expand("iv", k.aead.NonceSize())
	return k
}

// Next gives the keys after an update, whose numbers begin with 0.
func (k *Keys) Next() *Keys {
	return newKeys(k.expand("traffic upd", len(k.secret)), k.hash, k.size)
}

// expand is HKDF-Expand-Label of RFC 8446, section 7.1, without a context.
func (k *Keys) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := slices.Concat([]byte{byte(n >> 8), byte(n), byte(len(label))}, []byte(label), []byte{0})
	key, err := hkdf.Expand(k.hash, k.secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return key
}

func (k *Keys) nonce(number uint64) []byte {
	nonce := bytes.Clone(k.iv)
	low := nonce[len(nonce)-8:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^number)
	return nonce
}

// Seal gives the record with this number.
func (k *Keys) Seal(number uint64, typ byte, content []byte) []byte {
	head := []byte{ApplicationRecord, 3, 3}
	head = binary.BigEndian.AppendUint16(head, uint16(len(content)+1+k.aead.Overhead()))
	return k.aead.Seal(head, k.nonce(number), append(bytes.Clone(content), typ), head)
}

// Open opens a whole record that was sealed with this number.
func (k *Keys) Open(number uint64, record []byte) (typ byte, content []byte, err error) {
	plain, err := k.aead.Open(nil, k.nonce(number), record[5:], record[:5])
	if err != nil {
		return 0, nil, err
	}
	plain = bytes.TrimRight(plain, "\x00") // padding
	if len(plain) == 0 {
		return 0, nil, errors.New("the record has no type")
	}
	return plain[len(plain)-1], plain[:len(plain)-1], nil
}
