package grace

import (
	"errors"
	"flag"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestConfig: a field that is zero has the default of the first version.
func TestConfig(t *testing.T) {
	for c, want := range map[Config][2]time.Duration{
		{}: {5 * time.Second, 10 * time.Second},
		{HTTPReadTimeout: 2, HTTPWriteTimeout: 3}: {2, 3},
	} {
		got := c.server("addr", http.NotFoundHandler())
		if got.ReadTimeout != want[0] || got.WriteTimeout != want[1] || got.Addr != "addr" || got.Handler == nil {
			t.Errorf("%+v: the server has %v, %v, %q; want %v", c, got.ReadTimeout, got.WriteTimeout, got.Addr, want)
		}
	}
}

// TestFlags: the import has added them, -p comes before what the program says, and -t
// opens nothing.
func TestFlags(t *testing.T) {
	set := func(name, value string) {
		f := flag.CommandLine.Lookup(name)
		if f == nil {
			t.Fatalf("there is no flag -%s", name)
		}
		before := f.Value.String()
		t.Cleanup(func() { f.Value.Set(before) })
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
	}
	if got := GetListenPort("localhost:9000"); got != "9000" {
		t.Errorf("port %q, want 9000", got)
	}
	set("t", "true")
	if err := Serve("nonsense", nil); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("Serve with -t: %v, want an error of the address", err)
	}
	set("p", "9001")
	if got := GetListenPort("localhost:9000"); got != "9001" {
		t.Errorf("port %q with -p 9001", got)
	}
	if err := Serve("nonsense", nil); err != nil {
		t.Errorf("Serve with -t -p 9001: %v, want nil", err)
	}
	if l, err := Listen("nonsense"); l != nil || !errors.Is(err, ErrConfigTest) {
		t.Errorf("Listen with -t -p 9001: %v, %v, want ErrConfigTest", l, err)
	}
}
