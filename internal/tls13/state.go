package tls13

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
)

// A State is all of a connection that goes to another process, besides the descriptor.
// It holds the connection's secrets: [State.Wipe] it when it is of no more use, and log
// none of it.
type State struct {
	Suite   uint16
	In, Out Half
	// Raw are bytes from the wire that are not decrypted yet: a part of a record, or
	// records. Plain are bytes that are decrypted and that no Read has returned.
	Raw, Plain []byte

	ServerName string // of SNI
	ALPN       string // "" or "http/1.1"
	Curve      tls.CurveID
	Resumed    bool
	ECH        bool // the handshake used Encrypted Client Hello
	Retried    bool // it had a HelloRetryRequest
	// Certificates is the client's chain, each in DER. What the old process has verified
	// of it does not go over.
	Certificates [][]byte
}

// A Half is what goes over of one direction: the traffic secret in use, and the
// sequence number of the next record. Key and IV follow from the secret.
type Half struct {
	Secret []byte
	Seq    uint64
}

// Bounds of a State. One that exceeds them stays where it is.
const (
	maxRaw          = 24 << 10 // more than a record: an idle connection has less
	maxCertificates = 24 << 10 // of all certificates together
	maxChain        = 16
	maxServerName   = 255

	// MaxState is how many bytes an encoded State has at most.
	MaxState = maxRaw + maxPlaintext + maxCertificates + 1024
)

const protoHTTP1 = "http/1.1"

// Wipe overwrites the secrets and all bytes of the connection, and empties s.
func (s *State) Wipe() {
	for _, b := range [][]byte{s.In.Secret, s.Out.Secret, s.Raw, s.Plain} {
		clear(b)
	}
	*s = State{}
}

// String keeps the secrets out of what is printed by mistake.
func (s State) String() string {
	return fmt.Sprintf("tls13.State{%s, SNI %q, in %d, out %d}", tls.CipherSuiteName(s.Suite), s.ServerName, s.In.Seq, s.Out.Seq)
}

// GoString is String: %#v prints no secrets either.
func (s State) GoString() string { return s.String() }

// check reports what is wrong with a State, however it was made.
func (s *State) check() error {
	suite, err := suiteOf(s.Suite)
	if err != nil {
		return err
	}
	certs := 0
	for _, der := range s.Certificates {
		certs += len(der)
	}
	switch {
	case len(s.In.Secret) != suite.size || len(s.Out.Secret) != suite.size:
		return fmt.Errorf("tls13: traffic secrets of %d and %d bytes, not of %d", len(s.In.Secret), len(s.Out.Secret), suite.size)
	case len(s.Raw) > maxRaw:
		return fmt.Errorf("tls13: %d bytes from the wire wait to be decrypted; at most %d go over", len(s.Raw), maxRaw)
	case len(s.Plain) > maxPlaintext:
		return fmt.Errorf("tls13: %d bytes wait to be read; at most %d go over", len(s.Plain), maxPlaintext)
	case len(s.ServerName) > maxServerName:
		return fmt.Errorf("tls13: a server name of %d bytes; at most %d go over", len(s.ServerName), maxServerName)
	case s.ALPN != "" && s.ALPN != protoHTTP1:
		return fmt.Errorf("tls13: protocol %.40q: only connections of %s or without ALPN can be moved", s.ALPN, protoHTTP1)
	case len(s.Certificates) > maxChain || certs > maxCertificates:
		return fmt.Errorf("tls13: %d client certificates of %d bytes; at most %d of %d bytes go over", len(s.Certificates), certs, maxChain, maxCertificates)
	}
	return nil
}

// describe fills in what ConnectionState tells of the connection.
func (s *State) describe(cs *tls.ConnectionState) {
	s.Suite, s.Curve, s.ServerName, s.ALPN = cs.CipherSuite, cs.CurveID, cs.ServerName, cs.NegotiatedProtocol
	s.Resumed, s.ECH, s.Retried = cs.DidResume, cs.ECHAccepted, *retried(cs)
	for _, c := range cs.PeerCertificates {
		s.Certificates = append(s.Certificates, c.Raw)
	}
}

// retried points to the HelloRetryRequest of cs, which Go has since 1.26.
func retried(cs *tls.ConnectionState) *bool {
	if f := reflect.ValueOf(cs).Elem().FieldByName("HelloRetryRequest"); f.IsValid() && f.Kind() == reflect.Bool {
		return f.Addr().Interface().(*bool)
	}
	return new(bool)
}

// ConnectionState is what a *tls.Conn would tell of the connection, but for three
// things. VerifiedChains is empty: see [Covers]. OCSPResponse,
// SignedCertificateTimestamps and LocalCertificate stay behind, which a server hardly
// ever has. And ExportKeyingMaterial returns an error, as the secret that it needs
// can't be read.
func (s *State) ConnectionState() (tls.ConnectionState, error) {
	cs := noExporter()
	cs.Version, cs.HandshakeComplete = tls.VersionTLS13, true
	//lint:ignore SA1019 a handler may still look at it
	cs.NegotiatedProtocolIsMutual = true
	cs.CipherSuite, cs.CurveID, cs.ServerName, cs.NegotiatedProtocol = s.Suite, s.Curve, s.ServerName, s.ALPN
	cs.DidResume, cs.ECHAccepted, *retried(&cs) = s.Resumed, s.ECH, s.Retried
	for i, der := range s.Certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return tls.ConnectionState{}, fmt.Errorf("tls13: client certificate %d: %w", i, err)
		}
		cs.PeerCertificates = append(cs.PeerCertificates, c)
	}
	return cs, nil
}

// noExporter returns a ConnectionState whose ExportKeyingMaterial returns an error. That
// of a zero ConnectionState panics. This one is of a connection, not a real one, that is
// configured for renegotiation, with which crypto/tls exports nothing.
func noExporter() tls.ConnectionState {
	cs := tls.Server(nil, &tls.Config{Renegotiation: tls.RenegotiateFreelyAsClient}).ConnectionState()
	cs.TLSUnique = nil // it has none in TLS 1.3: RFC 9266
	return cs
}

// An encoded State is a byte that names the version, and fields: a tag, the length as
// two bytes, big-endian, the value. Fields come in the order of their tags; what is
// empty is left out. A reader refuses a tag that it does not know, since what it stands
// for may decide how the connection is to be served; a later version can use those from
// tagOptional on for what may be missed.
const (
	stateVersion = 1

	tagSuite = iota
	tagInSecret
	tagInSeq
	tagOutSecret
	tagOutSeq
	tagRaw
	tagPlain
	tagServerName
	tagALPN
	tagCurve
	tagFlags
	tagCertificate // may come again

	tagOptional = 128
)

const (
	flagResumed = 1 << iota
	flagECH
	flagRetried

	flagsKnown = 1<<iota - 1
)

// Encode returns s for another process to [Decode], in a slice that has been copied
// nowhere: clear it after use.
func (s *State) Encode() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	size := 64 + len(s.In.Secret) + len(s.Out.Secret) + len(s.Raw) + len(s.Plain) + len(s.ServerName) + len(s.ALPN)
	for _, der := range s.Certificates {
		size += 3 + len(der)
	}
	b := append(make([]byte, 0, size), stateVersion)
	field := func(tag byte, value []byte) {
		if len(value) > 0 {
			b = binary.BigEndian.AppendUint16(append(b, tag), uint16(len(value)))
			b = append(b, value...)
		}
	}
	var n [8]byte
	number := func(tag byte, v uint64, size int) {
		binary.BigEndian.PutUint64(n[:], v)
		if v != 0 {
			field(tag, n[8-size:])
		}
	}
	number(tagSuite, uint64(s.Suite), 2)
	field(tagInSecret, s.In.Secret)
	number(tagInSeq, s.In.Seq, 8)
	field(tagOutSecret, s.Out.Secret)
	number(tagOutSeq, s.Out.Seq, 8)
	field(tagRaw, s.Raw)
	field(tagPlain, s.Plain)
	field(tagServerName, []byte(s.ServerName))
	field(tagALPN, []byte(s.ALPN))
	number(tagCurve, uint64(s.Curve), 2)
	var flags uint64
	if s.Resumed {
		flags |= flagResumed
	}
	if s.ECH {
		flags |= flagECH
	}
	if s.Retried {
		flags |= flagRetried
	}
	number(tagFlags, flags, 1)
	for _, der := range s.Certificates {
		field(tagCertificate, der)
	}
	return b, nil
}

var errCutShort = errors.New("tls13: the state of a connection is cut short")

// Decode reads what Encode wrote, and keeps nothing of b. Its error never quotes the
// secrets.
func Decode(b []byte) (s State, err error) {
	defer func() {
		if err != nil {
			s.Wipe()
		}
	}()
	switch {
	case len(b) == 0:
		return s, errCutShort
	case len(b) > MaxState:
		return s, fmt.Errorf("tls13: the state of a connection has %d bytes, more than %d", len(b), MaxState)
	case b[0] != stateVersion:
		return s, fmt.Errorf("tls13: the state of a connection is of version %d; this process knows %d", b[0], stateVersion)
	}
	last := byte(0)
	for b = b[1:]; len(b) > 0; {
		if len(b) < 3 {
			return s, errCutShort
		}
		tag, n := b[0], int(binary.BigEndian.Uint16(b[1:]))
		if b = b[3:]; len(b) < n {
			return s, errCutShort
		}
		if tag < last || tag == last && tag != tagCertificate && tag < tagOptional || n == 0 {
			return s, fmt.Errorf("tls13: field %d of a connection's state is out of order, twice there, or empty", tag)
		}
		if err := s.decodeField(tag, b[:n]); err != nil {
			return s, err
		}
		last, b = tag, b[n:]
	}
	return s, s.check()
}

func (s *State) decodeField(tag byte, value []byte) (err error) {
	number := func(size int) (v uint64) {
		if len(value) != size {
			err = fmt.Errorf("tls13: field %d of a connection's state has %d bytes, not %d", tag, len(value), size)
			return 0
		}
		for _, b := range value {
			v = v<<8 | uint64(b)
		}
		if v == 0 {
			err = fmt.Errorf("tls13: field %d of a connection's state is there, and zero", tag)
		}
		return v
	}
	own := func() []byte { return append([]byte(nil), value...) }
	switch tag {
	case tagSuite:
		s.Suite = uint16(number(2))
	case tagInSecret:
		s.In.Secret = own()
	case tagInSeq:
		s.In.Seq = number(8)
	case tagOutSecret:
		s.Out.Secret = own()
	case tagOutSeq:
		s.Out.Seq = number(8)
	case tagRaw:
		s.Raw = own()
	case tagPlain:
		s.Plain = own()
	case tagServerName:
		s.ServerName = string(value)
	case tagALPN:
		s.ALPN = string(value)
	case tagCurve:
		s.Curve = tls.CurveID(number(2))
	case tagFlags:
		flags := number(1)
		if flags&^flagsKnown != 0 {
			return fmt.Errorf("tls13: flags %#x of a connection's state are unknown", flags)
		}
		s.Resumed, s.ECH, s.Retried = flags&flagResumed != 0, flags&flagECH != 0, flags&flagRetried != 0
	case tagCertificate:
		s.Certificates = append(s.Certificates, own())
	default:
		if tag < tagOptional {
			return fmt.Errorf("tls13: field %d of a connection's state is unknown to this process", tag)
		}
	}
	return err
}
