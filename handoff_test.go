//go:build unix

package grace

import (
	"io"
	"strings"
	"testing"

	"github.com/julofinance/grace/v3/internal/control"
	"github.com/julofinance/grace/v3/internal/fd"
	"github.com/julofinance/grace/v3/internal/manifest"
	"github.com/julofinance/grace/v3/internal/testing/fdtest"
)

func TestJoinParent(t *testing.T) {
	good := manifest.Manifest{Version: protocolVersion, Generation: 2, Sockets: []manifest.Entry{{}, {}}}
	for name, tc := range map[string]struct {
		version, count int
		first          []byte
		want           error
		text           string
	}{
		"other version": {version: protocolVersion + 1, want: ErrProtocol, text: "version 2"},
		"no manifest":   {first: control.Message{Type: msgGo}.Frame(), want: ErrProtocol, text: "begins with a message 'G'"},
		"no record":     {first: control.Message{Type: msgManifest, Payload: []byte("no")}.Frame(), want: ErrProtocol},
		"wrong count":   {count: 3, first: control.NewMessage(msgManifest, &good).Frame(), want: ErrProtocol, text: "names 2 sockets, and 3"},
		"old is gone":   {first: nil, want: io.EOF},
		"old is dying":  {first: control.NewMessage(msgManifest, &good).Frame()[:20], want: io.ErrUnexpectedEOF},
		"good":          {count: 2, first: control.NewMessage(msgManifest, &good).Frame()},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, err := control.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			_, ready := fdtest.Pipes(t, 1)
			h := &handover{version: protocolVersion, control: theirs, ready: ready[0], count: tc.count}
			if tc.version != 0 {
				h.version = tc.version
				defer fd.CloseAll([]int{theirs, ready[0]})
			}
			ours.Write(tc.first)
			ours.Close()
			p, err := joinParent(h, limit)
			if tc.want == nil {
				if err != nil || p.m.Generation != 2 {
					t.Fatalf("joinParent: %v", err)
				}
				p.ch.Close()
				p.ready.Close()
				return
			}
			wantErr(t, err, tc.want)
			if s := err.Error(); !strings.HasPrefix(s, "grace: ") || strings.Count(s, "grace: ") != 1 || !strings.Contains(s, tc.text) {
				t.Errorf("error text %q, want one that begins with %q and has %q", s, "grace: ", tc.text)
			}
		})
	}
}

func TestStopMessage(t *testing.T) {
	for _, want := range []stopMessage{{}, {Now: true}, {Leave: true}, {Early: true}, {Now: true, Leave: true, Early: true}} {
		var got stopMessage
		if err := control.NewMessage(msgStop, &want).Decode(&got); err != nil || got != want {
			t.Errorf("got %+v, error %v; want %+v", got, err, want)
		}
	}
}
