package tls13

import (
	"crypto/sha3"
	"crypto/tls"
	"errors"
	"hash"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSelfCheck(t *testing.T) {
	if err := SelfCheck(); err != nil {
		t.Error(err)
	}
}

// TestSelfCheckFindsWhatIsOtherwise breaks what Extract reads.
func TestSelfCheckFindsWhatIsOtherwise(t *testing.T) {
	changed := func(change func(*State)) func(*tls.Conn) (State, error) {
		return func(c *tls.Conn) (State, error) {
			s, err := Extract(c)
			if err == nil {
				change(&s)
			}
			return s, err
		}
	}
	for name, b := range map[string]struct {
		extract func(*tls.Conn) (State, error)
		want    string
	}{
		"reading secret":  {changed(func(s *State) { s.In.Secret[0]++ }), "is not CLIENT_TRAFFIC_SECRET_0"},
		"writing secret":  {changed(func(s *State) { s.Out.Secret[0]++ }), "is not SERVER_TRAFFIC_SECRET_0"},
		"exchanged":       {changed(func(s *State) { s.In, s.Out = s.Out, s.In }), "is not CLIENT_TRAFFIC_SECRET_0"},
		"reading number":  {changed(func(s *State) { s.In.Seq++ }), "the sequence number of CLIENT_TRAFFIC_SECRET_0 is 2"},
		"writing number":  {changed(func(s *State) { s.Out.Seq = 0 }), "the sequence number of SERVER_TRAFFIC_SECRET_0 is 0"},
		"suite":           {changed(func(s *State) { s.Suite = tls.TLS_AES_256_GCM_SHA384 }), "traffic secrets of 32"},
		"bytes not there": {changed(func(s *State) { s.Raw = []byte{23, 3, 3, 0, 20} }), "the first record"},
		"error":           {func(*tls.Conn) (State, error) { return State{}, io.ErrNoProgress }, io.ErrNoProgress.Error()},
		"panic":           {func(*tls.Conn) (State, error) { panic("reflect: call of") }, "panic: reflect: call of"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := selfCheck(b.extract); err == nil || !strings.Contains(err.Error(), b.want) {
				t.Errorf("error %v, want one with %q", err, b.want)
			}
		})
	}
}

// TestUnknownCryptoTLS changes what crypto/tls is known to be, instead of crypto/tls.
func TestUnknownCryptoTLS(t *testing.T) {
	for _, known := range [][]field{connFields, halfConnFields} {
		typ := reflect.TypeFor[tls.Conn]()
		if &known[0] == &halfConnFields[0] {
			typ = halfConnType()
		}
		for i, f := range known {
			if _, ok := typ.FieldByName(f.name); !ok {
				continue // of another Go
			}
			less := append(append([]field(nil), known[:i]...), known[i+1:]...)
			if _, err := locate(typ, less); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "new field "+f.name) {
				t.Errorf("%v with a new field %s: %v", typ, f.name, err)
			}
			other := append([]field(nil), known...)
			other[i].typ = "*tls.other"
			if _, err := locate(typ, other); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "field "+f.name+" of") {
				t.Errorf("%v with a field %s of another type: %v", typ, f.name, err)
			}
		}
		more := append(append([]field(nil), known...), field{"extra", "int", read})
		if _, err := locate(typ, more); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "no field extra") {
			t.Errorf("%v without a field: %v", typ, err)
		}
	}
	if _, err := locate(reflect.TypeFor[int](), nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("an int: %v", err)
	}
	// Fields that are read are those that are marked: view.get finds no others.
	l := get(tlsLayout())(t)
	for _, at := range []map[string]int{l.conn, l.halfConn, l.buffer, l.reader, l.flag, l.count} {
		if len(at) == 0 {
			t.Error("a struct without fields")
		}
	}
}

// TestSecretIsInUse: a secret from which the cipher's IV does not follow is not believed.
func TestSecretIsInUse(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	l := get(tlsLayout())(t)
	v := view{reflect.ValueOf(p.server).Elem(), l.conn}
	right := get(suiteOf(get(Extract(p.server))(t).Suite))(t)
	other := &suite{right.id, right.keyLen, right.size, sha3of(right.size)}
	for _, direction := range []string{"in", "out"} {
		if _, err := l.half(right, v.get(direction)); err != nil {
			t.Error(err)
		}
		if _, err := l.half(other, v.get(direction)); err == nil || !strings.Contains(err.Error(), "trafficSecret is not the one that cipher uses") {
			t.Errorf("%s: %v", direction, err)
		}
	}
}

// sha3of is another hash of this size.
func sha3of(size int) func() hash.Hash {
	return func() hash.Hash {
		if size == sha3.New256().Size() {
			return sha3.New256()
		}
		return sha3.New384()
	}
}

func TestExtractRefuses(t *testing.T) {
	established := func(change func(client, server *tls.Config)) *couple {
		c, s := clientConfig(), serverConfig()
		change(c, s)
		return connect(t, c, s)
	}
	nothing := func(_, _ *tls.Config) {}
	for name, c := range map[string]struct {
		conn func() *tls.Conn
		want string
	}{
		"no handshake": {func() *tls.Conn { return tls.Server(&script{}, serverConfig()) }, "handshake is not complete"},
		"failed handshake": {func() *tls.Conn {
			c := tls.Server(&script{end: io.EOF}, serverConfig())
			c.Handshake()
			return c
		}, "handshake is not complete"},
		"client": {func() *tls.Conn { return established(nothing).client }, "the client's end"},
		"TLS 1.2": {func() *tls.Conn {
			return established(func(c, _ *tls.Config) { c.MaxVersion = tls.VersionTLS12 }).server
		}, "speaks TLS 1.2"},
		"HTTP/2": {func() *tls.Conn {
			return established(func(c, s *tls.Config) { c.NextProtos, s.NextProtos = []string{"h2"}, []string{"h2"} }).server
		}, `protocol "h2"`},
		"CloseWrite": {func() *tls.Conn {
			p := established(nothing)
			check(t, p.server.CloseWrite())
			return p.server
		}, "close_notify was sent"},
		"Close": {func() *tls.Conn {
			p := established(nothing)
			check(t, p.server.Close())
			return p.server
		}, "it was closed"},
		"the client has closed": {func() *tls.Conn {
			p := established(nothing)
			check(t, p.client.CloseWrite())
			if _, err := p.server.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the client's close_notify: %v", err)
			}
			return p.server
		}, "can't be read any more"},
		"a Write has failed": {func() *tls.Conn {
			p := established(nothing)
			p.server.SetWriteDeadline(time.Unix(1, 0))
			if _, err := p.server.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a Write with a deadline in the past: %v", err)
			}
			return p.server
		}, "can't be written to any more"},
		"half a message": {func() *tls.Conn {
			sc := newScene(t)
			sc.feed(sc.client.record(t, recordHandshake, []byte{handKeyUpdate, 0, 0}, 0))
			if _, err := sc.oracle.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after half a KeyUpdate: %v", err)
			}
			sc.ours.Read(make([]byte, 1))
			if _, err := sc.ours.Extract(); err != errHalfMessage {
				t.Errorf("(*Conn).Extract in the middle of a message: %v", err)
			}
			return sc.oracle
		}, "half a handshake message"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := c.conn()
			if _, err := Extract(conn); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			} else if errors.Is(err, ErrUnknown) {
				t.Errorf("%v counts as a change of crypto/tls", err)
			}
		})
	}
}

// TestExtractChangesNothing: a connection that was read goes on.
func TestExtractChangesNothing(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	for range 3 {
		get(Extract(p.server))(t)
		talk(t, p.client, p.server)
	}
}

// TestMovedInTheMiddle moves a connection at each byte of what a client sends at once: a
// request, the end of one and the beginning of the next, padding, a key update, and the
// end. Before the move the old process reads until nothing is left, or one byte, which
// leaves the rest of the record decrypted.
func TestMovedInTheMiddle(t *testing.T) {
	sc := newScene(t)
	var sent []byte
	for _, r := range [][]byte{
		sc.client.record(t, recordData, []byte("POST / HTTP/1.1\r\n\r\nbo"), 0),
		sc.client.record(t, recordData, []byte("dyGET /next HTTP/1.1\r\n"), 100),
		sc.client.record(t, recordHandshake, []byte{handKeyUpdate, 0, 0, 1, 1}, 0),
	} {
		sent = append(sent, r...)
	}
	check(t, sc.client.update())
	sent = append(sent, sc.client.record(t, recordData, []byte("Host: x\r\n\r\n"), 0)...)
	sent = append(sent, sc.client.record(t, recordAlert, []byte{1, 0}, 0)...)
	const want = "POST / HTTP/1.1\r\n\r\nbodyGET /next HTTP/1.1\r\nHost: x\r\n\r\n"

	start := get(sc.ours.Extract())(t)
	encoded := get(start.Encode())(t)
	for _, whole := range []bool{true, false} {
		for cut := range len(sent) {
			sc.oursWire = &script{}
			c := sc.conn(t, get(Decode(encoded))(t))
			sc.oursWire.in.Write(sent[:cut])
			var got []byte
			if whole {
				got, _ = drain(c, 1000)
			} else {
				b := make([]byte, 1)
				n, _ := c.Read(b)
				got = b[:n]
			}
			c = again(t, c)
			sc.oursWire.in.Write(sent[cut:])
			rest, err := drain(c, 7)
			if got = append(got, rest...); string(got) != want || err != io.EOF {
				t.Fatalf("moved after byte %d of %d: read %q, %v", cut, len(sent), got, err)
			}
			if sc.oursWire.out.Len() != headerLen+keyUpdateLen+1+tagLen {
				t.Fatalf("moved after byte %d of %d: %d bytes written, not one KeyUpdate", cut, len(sent), sc.oursWire.out.Len())
			}
		}
	}
}

// TestExtractInTheMiddle is the same for the way out of crypto/tls.
func TestExtractInTheMiddle(t *testing.T) {
	for name, c := range map[string]struct {
		read int // how much crypto/tls delivers; 0: all
		wire func(sc *scene) []byte
		cut  int // bytes from the end that come after the move
	}{
		"half a header":         {0, func(sc *scene) []byte { return sc.client.record(t, recordData, []byte("whole"), 0) }, 28 - 4},
		"half a record":         {0, func(sc *scene) []byte { return sc.client.record(t, recordData, []byte("whole"), 0) }, 10},
		"decrypted, not read":   {2, func(sc *scene) []byte { return sc.client.record(t, recordData, []byte("whole"), 0) }, 0},
		"the end and the start": {2, func(sc *scene) []byte { return two(t, sc) }, 7},
		"two whole ones":        {2, func(sc *scene) []byte { return two(t, sc) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			wire := c.wire(sc)
			sc.oracleWire.in.Write(wire[:len(wire)-c.cut])
			var got []byte
			if c.read > 0 {
				got = make([]byte, c.read)
				get(io.ReadFull(sc.oracle, got))(t)
			} else {
				got, _ = drain(sc.oracle, 100)
			}
			ours := sc.conn(t, get(Extract(sc.oracle))(t))
			sc.oursWire.in.Write(wire[len(wire)-c.cut:])
			rest, err := drain(ours, 100)
			if got = append(got, rest...); !strings.HasPrefix("wholesecond", string(got)) || len(got) < 5 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func two(t *testing.T, sc *scene) []byte {
	return append(sc.client.record(t, recordData, []byte("whole"), 0), sc.client.record(t, recordData, []byte("second"), 0)...)
}

// TestMovedTenTimes moves a connection to a client in Go ten times in a row, with key
// updates between, and looks at what handlers see.
func TestMovedTenTimes(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	talk(t, p.client, p.server)
	was := p.server.ConnectionState()
	c := p.move(t)
	for i := range 10 {
		talk(t, p.client, c)
		if i%3 == 1 {
			check(t, c.updateKeys(i%2 == 0))
			talk(t, p.client, c)
		}
		if i%4 == 2 { // more than one record of the largest size
			say(t, p.client, c, strings.Repeat("large ", 20000))
			say(t, c, p.client, strings.Repeat("large ", 20000))
		}
		if i < 9 {
			old := c
			c = again(t, c)
			if _, err := old.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the Conn that was moved writes: %v", err)
			}
			if _, err := old.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the Conn that was moved reads: %v", err)
			}
			if err := errors.Join(old.updateKeys(false)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the Conn that was moved changes keys: %v", err)
			}
			check(t, old.Close()) // and neither writes nor closes
		}
	}
	is := c.ConnectionState()
	if _, err := is.ExportKeyingMaterial("x", nil, 1); err == nil {
		t.Error("keying material was exported")
	}
	for _, cs := range []*tls.ConnectionState{&was, &is} {
		v := reflect.ValueOf(cs).Elem()
		for i := range v.NumField() {
			if f := v.Type().Field(i); !f.IsExported() || f.Name == "LocalCertificate" {
				continue
			} else if a, b := reflect.ValueOf(was).Field(i), reflect.ValueOf(is).Field(i); !reflect.DeepEqual(a.Interface(), b.Interface()) {
				t.Errorf("%s was %v, is %v", f.Name, a, b)
			}
		}
	}
	check(t, c.Close())
	if _, err := p.client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client sees %v, not the end", err)
	}
}

// TestTakenBack: what the other process did not take is served on here, with all that
// the handshake has proven.
func TestTakenBack(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	s := p.extract(t)
	get(s.Encode())(t) // and the other process does nothing with it
	c := get(New(p.below, &s, p.server.ConnectionState()))(t)
	if !reflect.DeepEqual(s, State{}) {
		t.Errorf("New has left %v for a second Conn", s)
	}
	cs := c.ConnectionState()
	get(cs.ExportKeyingMaterial("label", nil, 16))(t)
	talk(t, p.client, c)
}

// TestReadIsWoken: the Read that waits in crypto/tls is ended by a deadline, and the
// connection goes over with what that Read has of a record.
func TestReadIsWoken(t *testing.T) {
	p := connect(t, clientConfig(), serverConfig())
	ended := make(chan error, 1)
	go func() {
		_, err := p.server.Read(make([]byte, 10))
		ended <- err
	}()
	p.server.SetReadDeadline(time.Unix(1, 0))
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Read returned %v", err)
		}
	case <-time.After(patience):
		t.Fatalf("a deadline in the past has not ended the Read within %v", patience)
	}
	s := p.extract(t)
	check(t, p.below.SetReadDeadline(time.Now().Add(patience)))
	talk(t, p.client, resume(t, p.below, s))
}

// TestFIPS: a process that is to use a validated module deals with no keys by itself.
func TestFIPS(t *testing.T) {
	cmd := exec.Command(get(os.Executable())(t), "-test.run", "^TestSelfCheck$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in FIPS 140 mode TLS connections are not moved") {
		t.Errorf("%v, and the check said:\n%s", err, out)
	}
}
