package grace

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/sdnotify"
)

// What the two processes tell each other is written as records: lines of fields
// such as
//
//	kind="listener" network="tcp" addr=":9000" bound="[::]:9000"
//
// A reader passes over keys that it does not know and takes those that are
// missing for zero, so that a field can be added without a new protocolVersion.
// A package with reflection would take a tenth of an upgrade's time: each
// process uses it once, when nothing of it is in any cache.

// records are being written.
type records struct{ b []byte }

func (r *records) key(key string) {
	if n := len(r.b); n > 0 && r.b[n-1] != '\n' {
		r.b = append(r.b, ' ')
	}
	r.b = append(append(r.b, key...), '=')
}

// text adds a field, unless it is empty.
func (r *records) text(key, v string) {
	if v != "" {
		r.key(key)
		r.b = strconv.AppendQuote(r.b, v)
	}
}

func (r *records) number(key string, v uint64) {
	r.key(key)
	r.b = strconv.AppendUint(r.b, v, 10)
}

// flag adds a field, unless it is false.
func (r *records) flag(key string, v bool) {
	if v {
		r.number(key, 1)
	}
}

// end ends the record.
func (r *records) end() { r.b = append(r.b, '\n') }

// A field is one that was read.
type field struct {
	key, value string
	err        error // a value that is not what it should be
}

func (f *field) number() uint64 { return f.upTo(math.MaxUint64) }
func (f *field) int() int       { return int(f.upTo(math.MaxInt32)) }
func (f *field) flag() bool     { return f.number() != 0 }

func (f *field) duration() time.Duration { return time.Duration(f.upTo(math.MaxInt64)) }

func (f *field) upTo(most uint64) uint64 {
	n, err := strconv.ParseUint(f.value, 10, 64)
	if err == nil && n > most {
		err = strconv.ErrRange
	}
	if err != nil {
		f.err = fmt.Errorf("%s=%s: %w", f.key, f.value, err)
		return 0
	}
	return n
}

// readRecords calls begin for each record, and each for each of its fields.
func readRecords(b []byte, begin func(), each func(*field)) error {
	for len(b) > 0 {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return fmt.Errorf("a record without an end: %.60q", line)
		}
		b = rest
		begin()
		for s := string(line); s != ""; {
			key, value, ok := strings.Cut(s, "=")
			if !ok {
				return fmt.Errorf("a field without a value: %.60q", s)
			}
			f := field{key: key}
			if quoted, err := strconv.QuotedPrefix(value); err == nil {
				f.value, _ = strconv.Unquote(quoted)
				s = value[len(quoted):]
			} else {
				f.value, s = value, ""
				if n := strings.IndexByte(value, ' '); n >= 0 {
					f.value, s = value[:n], value[n:]
				}
			}
			s = strings.TrimPrefix(s, " ")
			if each(&f); f.err != nil {
				return f.err
			}
		}
	}
	return nil
}

// A body is what a message carries.
type body interface {
	encode(*records)
	decode(payload []byte) error
}

func (m *manifest) encode(r *records) {
	r.b = slices.Grow(r.b, 512+128*len(m.Sockets))
	r.number("version", uint64(m.Version))
	r.number("pid", uint64(m.Pid))
	r.number("generation", uint64(m.Generation))
	r.text("dir", m.Dir)
	r.text("path", m.Path)
	r.text("binary", m.Binary)
	if s := m.Systemd; s != nil {
		r.text("notify", s.Socket)
		r.number("watchdog", uint64(s.Watchdog))
		r.flag("child", s.Parent)
	}
	r.end()
	for i := range m.Sockets {
		e := &m.Sockets[i]
		r.text("kind", string(e.Kind))
		r.text("network", e.Network)
		r.text("addr", e.Addr)
		r.text("bound", e.Bound)
		r.flag("v6only", e.V6Only)
		if e.Path != "" {
			r.text("path", e.Path)
			r.number("dev", e.Dev)
			r.number("ino", e.Ino)
		}
		r.flag("master", e.Master)
		r.text("name", e.Name)
		r.end()
	}
}

func (m *manifest) decode(payload []byte) error {
	*m = manifest{Sockets: make([]entry, 0, bytes.Count(payload, []byte("\n")))}
	n := -1
	var e *entry
	return readRecords(payload, func() {
		if n++; n > 0 {
			m.Sockets = append(m.Sockets, entry{})
			e = &m.Sockets[n-1]
		}
	}, func(f *field) {
		if n == 0 {
			m.field(f)
		} else {
			e.field(f)
		}
	})
}

func (m *manifest) field(f *field) {
	switch f.key {
	case "version":
		m.Version = f.int()
	case "pid":
		m.Pid = f.int()
	case "generation":
		m.Generation = f.int()
	case "dir":
		m.Dir = f.value
	case "path":
		m.Path = f.value
	case "binary":
		m.Binary = f.value
	case "notify":
		m.Systemd = &sdnotify.Manager{Socket: f.value}
	case "watchdog":
		if m.Systemd != nil {
			m.Systemd.Watchdog = f.duration()
		}
	case "child":
		if m.Systemd != nil {
			m.Systemd.Parent = f.flag()
		}
	}
}

func (e *entry) field(f *field) {
	switch f.key {
	case "kind":
		e.Kind = kind(f.value)
	case "network":
		e.Network = f.value
	case "addr":
		e.Addr = f.value
	case "bound":
		e.Bound = f.value
	case "v6only":
		e.V6Only = f.flag()
	case "path":
		e.Path = f.value
	case "dev":
		e.Dev = f.number()
	case "ino":
		e.Ino = f.number()
	case "master":
		e.Master = f.flag()
	case "name":
		e.Name = f.value
	}
}

// The first record of claims is about all of them, the others have a socket each.
func (c *claims) encode(r *records) {
	r.flag("pongs", c.Pongs)
	r.end()
	for i, socket := range c.Sockets {
		r.number("socket", uint64(socket))
		r.text("takes", c.Takes[i])
		r.end()
	}
}

func (c *claims) decode(payload []byte) error {
	*c = claims{}
	n := -1
	return readRecords(payload, func() {
		if n++; n > 0 {
			c.add(0, "")
		}
	}, func(f *field) {
		switch {
		case n == 0 && f.key == "pongs":
			c.Pongs = f.flag()
		case n > 0 && f.key == "socket":
			c.Sockets[n-1] = f.int()
		case n > 0 && f.key == "takes":
			c.Takes[n-1] = f.value
		}
	})
}

func (s *stopMessage) encode(r *records) {
	r.flag("now", s.Now)
	r.flag("leave", s.Leave)
	r.flag("early", s.Early)
	r.end()
}

func (s *stopMessage) decode(payload []byte) error {
	*s = stopMessage{}
	return readRecords(payload, func() {}, func(f *field) {
		switch f.key {
		case "now":
			s.Now = f.flag()
		case "leave":
			s.Leave = f.flag()
		case "early":
			s.Early = f.flag()
		}
	})
}
