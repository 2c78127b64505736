package control

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Records is what the two processes tell each other, being written: lines of fields
// such as
//
//	kind="listener" network="tcp" addr=":9000" bound="[::]:9000"
//
// A reader skips keys that it does not know, and keys that are missing count as zero, so
// a field can be added without a new version of the protocol. A package with reflection
// would take a tenth of an upgrade's time: each process uses it once, with cold caches.
type Records struct{ b []byte }

func (r *Records) key(key string) {
	if n := len(r.b); n > 0 && r.b[n-1] != '\n' {
		r.b = append(r.b, ' ')
	}
	r.b = append(append(r.b, key...), '=')
}

// Text adds a field, unless it is empty.
func (r *Records) Text(key, v string) {
	if v != "" {
		r.key(key)
		r.b = strconv.AppendQuote(r.b, v)
	}
}

// Number adds a field, also if it is zero.
func (r *Records) Number(key string, v uint64) {
	r.key(key)
	r.b = strconv.AppendUint(r.b, v, 10)
}

// Flag adds a field, unless it is false.
func (r *Records) Flag(key string, v bool) {
	if v {
		r.Number(key, 1)
	}
}

// Grow makes room for n more bytes.
func (r *Records) Grow(n int) { r.b = slices.Grow(r.b, n) }

// End ends the record.
func (r *Records) End() { r.b = append(r.b, '\n') }

// A Field is one field of a record that was read. A method that finds a value which is not
// what it should be makes ReadRecords return an error.
type Field struct {
	Key, Value string
	err        error
}

// Number, Int, Flag and Duration read the field's value.
func (f *Field) Number() uint64 { return f.upTo(math.MaxUint64) }
func (f *Field) Int() int       { return int(f.upTo(math.MaxInt32)) }
func (f *Field) Flag() bool     { return f.Number() != 0 }

func (f *Field) Duration() time.Duration { return time.Duration(f.upTo(math.MaxInt64)) }

func (f *Field) upTo(most uint64) uint64 {
	n, err := strconv.ParseUint(f.Value, 10, 64)
	if err == nil && n > most {
		err = strconv.ErrRange
	}
	if err != nil {
		f.err = fmt.Errorf("%s=%s: %w", f.Key, f.Value, err)
		return 0
	}
	return n
}

// ReadRecords calls begin at the start of each record, and each for each of its fields.
func ReadRecords(b []byte, begin func(), each func(*Field)) error {
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
			f := Field{Key: key}
			if quoted, err := strconv.QuotedPrefix(value); err == nil {
				f.Value, _ = strconv.Unquote(quoted)
				s = value[len(quoted):]
			} else {
				f.Value, s = value, ""
				if n := strings.IndexByte(value, ' '); n >= 0 {
					f.Value, s = value[:n], value[n:]
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
