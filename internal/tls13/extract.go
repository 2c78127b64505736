package tls13

import (
	"bytes"
	"crypto/fips140"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
)

// ErrUnknown is wrapped by the error of a crypto/tls that is not built as this package
// knows it. Nothing can be extracted in this process.
var ErrUnknown = errors.New("tls13: this version of crypto/tls is not known")

// Extract reads from c what another process needs to serve the connection, and changes
// nothing in c. c must be a server's, its handshake over, and open; it is an error if
// the connection can't go on elsewhere, and then c can be used as before.
//
// The caller sees to it that
//
//   - no call of a method of c is under way. A Read that waits can be ended by a read
//     deadline in the past: it returns a timeout, and keeps what has come of a record;
//   - no method of c is called afterwards, and should one be, that nothing of what it
//     writes reaches the wire: see "No sequence number is used twice". It is Close that
//     an http.Server calls, so a wrapper of c must stand between them; where Close did
//     reach c, use [ExtractClosed].
func Extract(c *tls.Conn) (State, error) { return extract(c, false, nil) }

// ExtractClosed is Extract after c.Close. The connection below c must have held back
// what Close has written, and not have been closed: held is all of that, one record with
// close_notify, or it is an error. The sequence number of that record, which only the
// caller has seen, is used again. Close has also left a write deadline that is over
// by now on the connection below: the caller takes it back.
func ExtractClosed(c *tls.Conn, held []byte) (State, error) { return extract(c, true, held) }

func extract(c *tls.Conn, closed bool, held []byte) (State, error) {
	if err := allowed(); err != nil {
		return State{}, err
	}
	l, err := tlsLayout()
	if err != nil {
		return State{}, err
	}
	v := view{reflect.ValueOf(c).Elem(), l.conn}
	if err := l.mayLeave(v, closed); err != nil {
		return State{}, err
	}
	cs := c.ConnectionState() // takes the lock of the handshake, which is over
	var s State
	s.describe(&cs)
	raw, plain := l.buffered(v.get("rawInput")), l.unread(v.get("input"))
	s.Raw, s.Plain = raw, plain
	suite, err := suiteOf(s.Suite)
	if err != nil {
		return State{}, err
	}
	if s.In, err = l.half(suite, v.get("in")); err != nil {
		return State{}, fmt.Errorf("%w: reading direction: %w", ErrUnknown, err)
	}
	if s.Out, err = l.half(suite, v.get("out")); err != nil {
		return State{}, fmt.Errorf("%w: writing direction: %w", ErrUnknown, err)
	}
	if closed {
		if err := s.takeBack(suite, held); err != nil {
			return State{}, err
		}
	}
	if err := s.check(); err != nil {
		return State{}, err
	}
	s.In.Secret, s.Out.Secret = bytes.Clone(s.In.Secret), bytes.Clone(s.Out.Secret)
	s.Raw, s.Plain = bytes.Clone(raw), bytes.Clone(plain)
	return s, nil
}

// Movable reports what can be said before a connection is extracted: whether cs, of a
// handshake that is over, is that of a connection for which Extract is made.
func Movable(cs *tls.ConnectionState) bool {
	_, err := suiteOf(cs.CipherSuite)
	return allowed() == nil && err == nil && cs.Version == tls.VersionTLS13 && (cs.NegotiatedProtocol == "" || cs.NegotiatedProtocol == protoHTTP1)
}

// allowed reports whether this process may deal with keys by itself: not one that is to
// use a validated module for that.
func allowed() error {
	if fips140.Enabled() || boring {
		return errors.New("tls13: in FIPS 140 mode TLS connections are not moved")
	}
	return nil
}

// mayLeave reports why the connection can't go elsewhere.
func (l *layout) mayLeave(v view, closed bool) error {
	in, out := view{v.get("in"), l.halfConn}, view{v.get("out"), l.halfConn}
	calls := int64(0)
	if closed {
		calls = 1 // the bit that Close sets
	}
	refusals := []struct {
		refused bool
		why     string
	}{
		{v.get("isClient").Bool(), "it is the client's end"},
		{!v.get("quic").IsNil(), "it is QUIC's"},
		{l.number(v.get("isHandshakeComplete"), l.flag) != 1, "its handshake is not complete"},
		{v.get("vers").Uint() != tls.VersionTLS13, fmt.Sprintf("it speaks %s, not TLS 1.3", tls.VersionName(uint16(v.get("vers").Uint())))},
		{!v.get("handshakeErr").IsNil(), "its handshake has failed"},
		{v.get("handshakes").Int() != 1, "it had another handshake after the first"},
		{l.number(v.get("activeCall"), l.count) != calls, "a Write is under way, or it was closed"},
		{v.get("closeNotifySent").Bool() != closed, "close_notify was sent, or was not"},
		{!v.get("closeNotifyErr").IsNil(), "close_notify could not be sent"},
		{!in.get("err").IsNil(), "it can't be read any more: an error, or the client has closed"},
		{!out.get("err").IsNil(), "it can't be written to any more"},
		{v.get("buffering").Bool() || v.get("sendBuf").Len() > 0, "records wait to be written"},
		{len(l.buffered(v.get("hand"))) > 0, "half a handshake message was read"},
		{!in.get("nextCipher").IsNil() || !out.get("nextCipher").IsNil(), "a change of its keys is under way"},
	}
	for _, r := range refusals {
		if r.refused {
			return fmt.Errorf("tls13: the connection can't be moved: %s", r.why)
		}
	}
	for _, h := range []view{in, out} {
		if h.get("version").Uint() != tls.VersionTLS13 || !h.get("mac").IsNil() || !h.get("nextMac").IsNil() {
			return fmt.Errorf("%w: its record layer is not that of TLS 1.3", ErrUnknown)
		}
	}
	return nil
}

// half reads one direction, and proves that its secret is the one in use: the IV that
// follows from it is the one that the cipher has.
func (l *layout) half(s *suite, v reflect.Value) (Half, error) {
	h := view{v, l.halfConn}
	secret := h.get("trafficSecret").Bytes()
	if len(secret) != s.size {
		return Half{}, fmt.Errorf("trafficSecret has %d bytes, not %d", len(secret), s.size)
	}
	c := h.get("cipher")
	if c.IsNil() {
		return Half{}, errors.New("cipher is nil")
	}
	c = c.Elem()
	if name := c.Type().String(); name != "*tls.xorNonceAEAD" || c.IsNil() {
		return Half{}, fmt.Errorf("cipher is a %s, not a *tls.xorNonceAEAD", name)
	}
	mask := c.Elem().FieldByName("nonceMask")
	if !mask.IsValid() || mask.Type() != reflect.TypeFor[[ivLen]byte]() {
		return Half{}, errors.New("the cipher's nonceMask is no [12]byte")
	}
	iv, err := s.expandLabel(secret, "iv", ivLen)
	if err != nil {
		return Half{}, err
	}
	if !bytes.Equal(iv, mask.Bytes()) {
		return Half{}, errors.New("trafficSecret is not the one that cipher uses")
	}
	return Half{secret, binary.BigEndian.Uint64(h.get("seq").Bytes())}, nil
}

// takeBack lowers the number of the next record by one, if held is the record that was
// sealed last, carries close_notify and nothing else.
func (s *State) takeBack(suite *suite, held []byte) error {
	if s.Out.Seq == 0 {
		return errors.New("tls13: nothing was written with this key, not even a close_notify")
	}
	h := half{suite: suite}
	if err := h.set(s.Out.Secret, s.Out.Seq-1); err != nil {
		return err
	}
	p, err := h.open(bytes.Clone(held))
	if err != nil || len(held) != headerLen+len(p)+tagLen || !bytes.Equal(p, []byte{1, byte(alertCloseNotify), recordAlert}) {
		return fmt.Errorf("tls13: what was held back, %d bytes, is not the one close_notify that was sealed last", len(held))
	}
	s.Out.Seq--
	return nil
}

// A view is a struct whose fields are found by name.
type view struct {
	v  reflect.Value
	at map[string]int
}

func (w view) get(name string) reflect.Value { return w.v.Field(w.at[name]) }

// buffered returns what a bytes.Buffer has, in place.
func (l *layout) buffered(v reflect.Value) []byte {
	b := view{v, l.buffer}
	return b.get("buf").Bytes()[b.get("off").Int():]
}

// unread returns what a bytes.Reader has, in place.
func (l *layout) unread(v reflect.Value) []byte {
	r := view{v, l.reader}
	b := r.get("s").Bytes()
	return b[min(r.get("i").Int(), int64(len(b))):]
}

// number returns the value of an atomic.Bool or atomic.Int32.
func (l *layout) number(v reflect.Value, at map[string]int) int64 {
	n := view{v, at}.get("v")
	if n.CanUint() {
		return int64(n.Uint())
	}
	return n.Int()
}

// A layout has, for each struct that is read, where the fields are.
type layout struct {
	conn, halfConn, buffer, reader, flag, count map[string]int
}

// tlsLayout compares what crypto/tls is with what this package knows of it, once.
var tlsLayout = sync.OnceValues(func() (*layout, error) {
	l := new(layout)
	for _, s := range []struct {
		t     reflect.Type
		known []field
		at    *map[string]int
	}{
		{reflect.TypeFor[tls.Conn](), connFields, &l.conn},
		{halfConnType(), halfConnFields, &l.halfConn},
		{reflect.TypeFor[bytes.Buffer](), bufferFields, &l.buffer},
		{reflect.TypeFor[bytes.Reader](), readerFields, &l.reader},
		{reflect.TypeFor[atomic.Bool](), boolFields, &l.flag},
		{reflect.TypeFor[atomic.Int32](), int32Fields, &l.count},
	} {
		var err error
		if *s.at, err = locate(s.t, s.known); err != nil {
			return nil, err
		}
	}
	return l, nil
})

func halfConnType() reflect.Type {
	if f, ok := reflect.TypeFor[tls.Conn]().FieldByName("in"); ok {
		return f.Type
	}
	return nil
}

// A field is one that is known. One that is read must be there.
type field struct {
	name, typ string
	read      bool
}

// locate returns where t has its fields. One that is not known is an error: it may mean
// that a connection has a state of which this package takes no care.
func locate(t reflect.Type, known []field) (map[string]int, error) {
	if t == nil || t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%w: %v is no struct", ErrUnknown, t)
	}
	at := make(map[string]int, len(known))
	for i := range t.NumField() {
		f := t.Field(i)
		typ, ok := typeOf(known, f.Name)
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: %v has a new field %s of type %v", ErrUnknown, t, f.Name, f.Type)
		case f.Type.String() != typ:
			return nil, fmt.Errorf("%w: field %s of %v is of type %v, not %s", ErrUnknown, f.Name, t, f.Type, typ)
		}
		at[f.Name] = i
	}
	for _, f := range known {
		if _, ok := at[f.name]; f.read && !ok {
			return nil, fmt.Errorf("%w: %v has no field %s", ErrUnknown, t, f.name)
		}
	}
	return at, nil
}

func typeOf(known []field, name string) (string, bool) {
	for _, f := range known {
		if f.name == name {
			return f.typ, true
		}
	}
	return "", false
}

const read = true

// The fields of Go 1.25, 1.26 and 1.27. Those that are not read are part of the
// handshake, of what ConnectionState tells, or of a client's end; or they only steer how
// large a record is (bytesSent, packetsSent) and how much nonsense in a row a client is
// allowed (retryCount), which begins anew.
var (
	connFields = []field{
		{"conn", "net.Conn", false},
		{"isClient", "bool", read},
		{"handshakeFn", "func(context.Context) error", false},
		{"quic", "*tls.quicState", read},
		{"isHandshakeComplete", "atomic.Bool", read},
		{"handshakeMutex", "sync.Mutex", false},
		{"handshakeErr", "error", read},
		{"vers", "uint16", read},
		{"haveVers", "bool", false},
		{"config", "*tls.Config", false},
		{"handshakes", "int", read},
		{"extMasterSecret", "bool", false},
		{"didResume", "bool", false},
		{"didHRR", "bool", false},
		{"cipherSuite", "uint16", false},
		{"curveID", "tls.CurveID", false},
		{"peerSigAlg", "tls.SignatureScheme", false},
		{"ocspResponse", "[]uint8", false},
		{"scts", "[][]uint8", false},
		{"localCertificate", "[][]uint8", false}, // since Go 1.27
		{"peerCertificates", "[]*x509.Certificate", false},
		{"verifiedChains", "[][]*x509.Certificate", false},
		{"serverName", "string", false},
		{"secureRenegotiation", "bool", false},
		{"ekm", "func(string, []uint8, int) ([]uint8, error)", false},
		{"resumptionSecret", "[]uint8", false},
		{"echAccepted", "bool", false},
		{"ticketKeys", "[]tls.ticketKey", false},
		{"clientFinishedIsFirst", "bool", false},
		{"closeNotifyErr", "error", read},
		{"closeNotifySent", "bool", read},
		{"clientFinished", "[12]uint8", false},
		{"serverFinished", "[12]uint8", false},
		{"clientProtocol", "string", false},
		{"in", "tls.halfConn", read},
		{"out", "tls.halfConn", read},
		{"rawInput", "bytes.Buffer", read},
		{"input", "bytes.Reader", read},
		{"hand", "bytes.Buffer", read},
		{"buffering", "bool", read},
		{"sendBuf", "[]uint8", read},
		{"bytesSent", "int64", false},
		{"packetsSent", "int64", false},
		{"retryCount", "int", false},
		{"activeCall", "atomic.Int32", read},
		{"tmp", "[16]uint8", false},
	}
	halfConnFields = []field{
		{"Mutex", "sync.Mutex", false},
		{"err", "error", read},
		{"version", "uint16", read},
		{"cipher", "interface {}", read},
		{"mac", "hash.Hash", read},
		{"seq", "[8]uint8", read},
		{"scratchBuf", "[13]uint8", false},
		{"nextCipher", "interface {}", read},
		{"nextMac", "hash.Hash", read},
		{"level", "tls.QUICEncryptionLevel", false},
		{"trafficSecret", "[]uint8", read},
	}
	bufferFields = []field{{"buf", "[]uint8", read}, {"off", "int", read}, {"lastRead", "bytes.readOp", false}}
	readerFields = []field{{"s", "[]uint8", read}, {"i", "int64", read}, {"prevRune", "int", false}}
	boolFields   = []field{{"_", "atomic.noCopy", false}, {"v", "uint32", read}}
	int32Fields  = []field{{"_", "atomic.noCopy", false}, {"v", "int32", read}}
)
