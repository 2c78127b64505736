package control

import (
	"slices"
	"testing"
)

// fields reads all fields of all records.
func fields(t *testing.T, b []byte) (got []string) {
	t.Helper()
	err := ReadRecords(b, func() { got = append(got, "record") }, func(f *Field) { got = append(got, f.Key+"="+f.Value) })
	if err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return got
}

func TestRecords(t *testing.T) {
	odd := "a \"quoted\" = b\nc\x00\xff ä"
	var r Records
	r.Text("text", odd)
	r.Text("none", "")
	r.Number("number", 1<<64-1)
	r.Number("zero", 0)
	r.End()
	r.End()
	r.Flag("yes", true)
	r.Flag("no", false)
	r.End()
	want := []string{"record", "text=" + odd, "number=18446744073709551615", "zero=0", "record", "record", "yes=1"}
	if got := fields(t, r.b); !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}

// A number that does not fit is an error, and names the field.
func TestFieldThatDoesNotFit(t *testing.T) {
	for text, read := range map[string]func(*Field){
		"n=x\n":                    func(f *Field) { f.Number() },
		"n=-1\n":                   func(f *Field) { f.Number() },
		"n=18446744073709551616\n": func(f *Field) { f.Number() },
		"n=2147483648\n":           func(f *Field) { f.Int() },
		"n=9223372036854775808\n":  func(f *Field) { f.Duration() },
	} {
		if err := ReadRecords([]byte(text), func() {}, read); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

// Whatever is written is read back, and whatever is read does not panic.
func FuzzRecords(f *testing.F) {
	f.Add("key", "value", []byte("a=1 b=\"x\"\n"))
	f.Add("k", "a \"b\"\n", []byte("a=\"\n"))
	f.Fuzz(func(t *testing.T, key, value string, b []byte) {
		ReadRecords(b, func() {}, func(f *Field) { f.Duration() })
		if value == "" {
			return
		}
		var r Records
		r.Text("a", value)
		r.Text("b", key)
		r.End()
		want := []string{"record", "a=" + value}
		if key != "" {
			want = append(want, "b="+key)
		}
		if got := fields(t, r.b); !slices.Equal(got, want) {
			t.Errorf("read %q, want %q", got, want)
		}
	})
}
