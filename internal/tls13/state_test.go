package tls13

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func fullState() State {
	return State{
		Suite: tls.TLS_AES_256_GCM_SHA384,
		In:    Half{bytes.Repeat([]byte{1}, 48), 7}, Out: Half{bytes.Repeat([]byte{2}, 48), 1 << 40},
		Raw: []byte("raw"), Plain: []byte("plain"), ServerName: testName, ALPN: protoHTTP1, Curve: tls.X25519,
		Resumed: true, ECH: true, Retried: true, Certificates: [][]byte{[]byte("one"), []byte("two")},
	}
}

func plainState() State {
	return State{
		Suite: tls.TLS_AES_128_GCM_SHA256, In: Half{bytes.Repeat([]byte{1}, 32), 7}, Out: Half{bytes.Repeat([]byte{2}, 32), 9},
		ServerName: testName, ALPN: protoHTTP1, Curve: tls.X25519,
	}
}

func TestStateGoesOver(t *testing.T) {
	for name, s := range map[string]State{"plain": plainState(), "full": fullState()} {
		t.Run(name, func(t *testing.T) {
			b := get(s.Encode())(t)
			if len(b) > 204 {
				t.Errorf("%d bytes; 204 are meant to do", len(b))
			}
			over := get(Decode(b))(t)
			if !reflect.DeepEqual(over, s) {
				t.Errorf("%#v went in, %#v came out", s, over)
			}
			clear(b)
			if !reflect.DeepEqual(over, s) {
				t.Error("the State shares memory with what it was decoded from")
			}
			t.Logf("%d bytes", len(b))
		})
	}
}

func TestEncodeCopiesNowhere(t *testing.T) {
	s := fullState()
	s.Raw, s.Plain = make([]byte, maxRaw), make([]byte, maxPlaintext)
	s.Certificates = [][]byte{make([]byte, maxCertificates-3), {1}, {2}, {3}}
	s.ServerName = strings.Repeat("x", maxServerName)
	var b []byte
	allocs := testing.AllocsPerRun(10, func() { b, _ = s.Encode() })
	if allocs > 1 {
		t.Errorf("%v allocations: a slice that grows leaves its secrets behind", allocs)
	}
	if len(b) > MaxState {
		t.Errorf("the largest State has %d bytes; MaxState is %d", len(b), MaxState)
	}
	get(Decode(b))(t)
}

func TestStateIsRefused(t *testing.T) {
	field := func(tag byte, value string) []byte {
		return append([]byte{tag, byte(len(value) >> 8), byte(len(value))}, value...)
	}
	s := plainState()
	good := get(s.Encode())(t)
	with := func(more ...[]byte) []byte { return append(bytes.Clone(good), bytes.Join(more, nil)...) }
	changed := func(change func(*State)) error {
		s := fullState()
		change(&s)
		_, err := s.Encode()
		return err
	}
	for name, want := range map[string]struct {
		err  error
		text string
	}{
		"nothing":          {decodeErr(nil), "cut short"},
		"cut in a field":   {decodeErr(good[:len(good)-1]), "cut short"},
		"cut in a header":  {decodeErr(with([]byte{tagCertificate, 0})), "cut short"},
		"another version":  {decodeErr(append([]byte{2}, good[1:]...)), "version 2; this process knows 1"},
		"unknown field":    {decodeErr(with(field(100, "x"))), "field 100 of a connection's state is unknown"},
		"field twice":      {decodeErr(with(field(tagCurve, "\x00\x1d"))), "field 10 of a connection's state is out of order, twice there, or empty"},
		"order":            {decodeErr(with(field(tagRaw, "x"))), "out of order"},
		"empty field":      {decodeErr(with(field(tagCertificate, ""))), "empty"},
		"length":           {decodeErr(with(field(tagFlags, "xy"))), "has 2 bytes, not 1"},
		"zero":             {decodeErr(with(field(tagFlags, "\x00"))), "zero"},
		"unknown flag":     {decodeErr(with(field(tagFlags, "\x80"))), "flags 0x80"},
		"too large":        {decodeErr(make([]byte, MaxState+1)), "more than"},
		"no secrets":       {decodeErr(append([]byte{1}, field(tagSuite, "\x13\x01")...)), "traffic secrets of 0 and 0 bytes, not of 32"},
		"suite":            {decodeErr(append([]byte{1}, field(tagSuite, "\x13\x03")...)), "TLS_CHACHA20_POLY1305_SHA256: only those with AES-GCM"},
		"secret":           {changed(func(s *State) { s.In.Secret = s.In.Secret[1:] }), "47 and 48 bytes, not of 48"},
		"raw":              {changed(func(s *State) { s.Raw = make([]byte, maxRaw+1) }), "wait to be decrypted"},
		"plain":            {changed(func(s *State) { s.Plain = make([]byte, maxPlaintext+1) }), "wait to be read"},
		"server name":      {changed(func(s *State) { s.ServerName = strings.Repeat("x", 256) }), "server name of 256 bytes"},
		"ALPN":             {changed(func(s *State) { s.ALPN = "h2" }), `protocol "h2"`},
		"chain":            {changed(func(s *State) { s.Certificates = make([][]byte, maxChain+1) }), "17 client certificates"},
		"certificates":     {changed(func(s *State) { s.Certificates = [][]byte{make([]byte, maxCertificates+1)} }), "24577 bytes"},
		"optional is fine": {decodeErr(with(field(200, "x"), field(200, "y"))), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if want.text == "" {
				check(t, want.err)
			} else if want.err == nil || !strings.Contains(want.err.Error(), want.text) {
				t.Errorf("error %v, want one with %q", want.err, want.text)
			}
		})
	}
}

func decodeErr(b []byte) error { _, err := Decode(b); return err }

func TestWipe(t *testing.T) {
	s := fullState()
	kept := [][]byte{s.In.Secret, s.Out.Secret, s.Raw, s.Plain}
	s.Wipe()
	for i, b := range kept {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("slice %d is not wiped", i)
		}
	}
	if !reflect.DeepEqual(s, State{}) {
		t.Errorf("%v is left", s)
	}
}

func TestStatePrintsNoSecret(t *testing.T) {
	s := fullState()
	s.In.Secret, s.Out.Secret = []byte("secret"), []byte("secret")
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{s, &s} {
			out := fmt.Sprintf(format, v)
			if strings.Contains(out, "secret") || strings.Contains(out, fmt.Sprint([]byte("secret"))) || strings.Contains(out, "0x73") {
				t.Errorf("%s prints %s", format, out)
			}
		}
	}
}

// FuzzDecode: what is no State is refused, and what is one is encoded as it was.
func FuzzDecode(f *testing.F) {
	for _, s := range []State{plainState(), fullState()} {
		f.Add(get(s.Encode())(f))
	}
	f.Add([]byte{1, tagSuite, 0, 2, 0x13, 1, 200, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			if !reflect.DeepEqual(s, State{}) {
				t.Errorf("an error, and %v", s)
			}
			return
		}
		c := get(s.Encode())(t)
		if !bytes.HasPrefix(b, c) || len(b) > len(c) && b[len(c)] < tagOptional {
			t.Errorf("%x was decoded, and encoded as %x", b, c)
		}
		if cs, err := s.ConnectionState(); err == nil {
			get(New(&script{}, &s, cs))(t)
		}
	})
}
