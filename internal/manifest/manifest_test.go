package manifest

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/sdnotify"
)

func TestRecords(t *testing.T) {
	odd := "a \"quoted\" = b\nc\x00\xff ä"
	for _, want := range []control.Body{
		&Manifest{Version: 1, Pid: 7, Generation: 3, Dir: "/", Path: "/bin/app", Sockets: []Entry{}},
		&Manifest{
			Version: 1, Pid: 1 << 30, Generation: 1000, Dir: odd, Path: odd, Carries: true,
			Systemd: &sdnotify.Manager{Socket: "@x y", Watchdog: 3 * time.Second, Parent: true},
			Sockets: []Entry{
				{},
				{Kind: Listener, Network: "tcp", Addr: ":0", Bound: "[::]:9000", V6Only: true},
				{Kind: Listener, Network: "unix", Addr: odd, Bound: odd, Path: odd, Dev: 1<<64 - 1, Ino: 1 << 63, Master: true, Name: odd, Tickets: Secret(odd)},
			},
		},
		&Claims{},
		&Claims{Pongs: true, Probes: true, Keeps: true, Exclusive: true},
		&Claims{Sockets: []int{0, 3, 1}, Takes: []string{"http/1", "", odd}},
	} {
		m := control.NewMessage('x', want)
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface().(control.Body)
		if err := m.Decode(got); err != nil {
			t.Errorf("%q: %v", m.Payload, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", m.Payload, got, want)
		}
	}
}

// TestClaimsOfNothing: what a new process does not have takes no room in its claims.
func TestClaimsOfNothing(t *testing.T) {
	if got := string(control.NewMessage('x', &Claims{}).Payload); got != "\n" {
		t.Errorf("the claims of a process that has nothing are %q, want an empty record", got)
	}
}

// What a later version adds is passed over, what is wrong is an error.
func TestRecordsOfAnotherVersion(t *testing.T) {
	for text, want := range map[string]*Manifest{
		"":            {Sockets: []Entry{}},
		"\n":          {Sockets: []Entry{}},
		"\n\n":        {Sockets: []Entry{{}}},
		"pid=1 new=2": nil, // cut off
		"pid=1 later=\"x y\" other=z generation=2\n": {Pid: 1, Generation: 2, Sockets: []Entry{}},
		"pid=x\n":          nil,
		"pid=-1\n":         nil,
		"pid=4294967296\n": nil,
		"pid\n":            nil,
		"dir=\"x\n":        {Dir: `"x`, Sockets: []Entry{}},
		"{\"pid\":1}\n":    nil,
	} {
		var got Manifest
		err := control.Message{Payload: []byte(text)}.Decode(&got)
		if want == nil {
			if !errors.Is(err, control.ErrProtocol) {
				t.Errorf("%q: error %v; want ErrProtocol", text, err)
			}
		} else if err != nil || !reflect.DeepEqual(&got, want) {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// Nothing that comes over the channel may be a panic.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("version=1 dir=\"/\"\nkind=\"listener\" dev=1\n"))
	f.Add([]byte("\nsocket=1 takes=\"x\"\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, v := range []control.Body{&Manifest{}, &Claims{}} {
			if v.Decode(b) == nil {
				control.NewMessage('x', v)
			}
		}
	})
}
