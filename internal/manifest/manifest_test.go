//go:build unix

package grace

import (
	"reflect"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/sdnotify"
)

func TestManifestAndMessages(t *testing.T) {
	odd := "a \"quoted\" = b\nc\x00\xff ä"
	for _, want := range []control.Body{
		&manifest{Version: 1, Pid: 7, Generation: 3, Dir: "/", Path: "/bin/app", Sockets: []entry{}},
		&manifest{
			Version: 1, Pid: 1 << 30, Generation: 1000, Dir: odd, Path: odd,
			Systemd: &sdnotify.Manager{Socket: "@x y", Watchdog: 3 * time.Second, Parent: true},
			Sockets: []entry{
				{},
				{Kind: kindListener, Network: "tcp", Addr: ":0", Bound: "[::]:9000", V6Only: true},
				{Kind: kindListener, Network: "unix", Addr: odd, Bound: odd, Path: odd, Dev: 1<<64 - 1, Ino: 1 << 63, Master: true, Name: odd},
			},
		},
		&claims{},
		&claims{Sockets: []int{0, 3, 1}, Takes: []string{protocolHTTP1, "", odd}},
		&stopMessage{},
		&stopMessage{Now: true, Leave: true, Early: true},
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

// What a later version adds is passed over, what is wrong is an error.
func TestManifestOfAnotherVersion(t *testing.T) {
	for text, want := range map[string]*manifest{
		"":            {Sockets: []entry{}},
		"\n":          {Sockets: []entry{}},
		"\n\n":        {Sockets: []entry{{}}},
		"pid=1 new=2": nil, // cut off
		"pid=1 later=\"x y\" other=z generation=2\n": {Pid: 1, Generation: 2, Sockets: []entry{}},
		"pid=x\n":          nil,
		"pid=-1\n":         nil,
		"pid=4294967296\n": nil,
		"pid\n":            nil,
		"dir=\"x\n":        {Dir: `"x`, Sockets: []entry{}},
		"{\"pid\":1}\n":    nil,
	} {
		var got manifest
		err := control.Message{Payload: []byte(text)}.Decode(&got)
		if want == nil {
			wantErr(t, err, ErrProtocol)
		} else if err != nil || !reflect.DeepEqual(&got, want) {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// Nothing that comes over the channel may be a panic.
func FuzzManifestAndMessages(f *testing.F) {
	f.Add([]byte("version=1 dir=\"/\"\nkind=\"listener\" dev=1\n"))
	f.Add([]byte("\nsocket=1 takes=\"x\"\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, v := range []control.Body{&manifest{}, &claims{}, &stopMessage{}} {
			if v.Decode(b) == nil {
				control.NewMessage('x', v)
			}
		}
	})
}
