package metrics

import (
	"encoding/json"
	"expvar"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/integration_test/metricstest"
)

const upgraded = "grace of real upgrades"

func TestMain(m *testing.M) {
	metricstest.Main(m, Expvar(upgraded), func() string { return expvar.Get(upgraded).String() })
}

// TestExpvarOfUpgrades: an upgrade that is rolled back, and one that succeeds.
func TestExpvarOfUpgrades(t *testing.T) {
	rolledBack, old, new := metricstest.Upgrades(t)
	for _, c := range []struct{ name, said, want, err string }{
		{"the old process after the roll back", rolledBack, `{
			"generation": 1, "last": "rolled back",
			"events": {"ready": 1, "asked": 1, "started": 1, "handed over": 1, "sick": 1, "rolled back": 1},
			"connections": {}
		}`, "it is sick"},
		{"the old process at its end", old, `{
			"generation": 1, "last": "stopped",
			"events": {"ready": 1, "asked": 2, "started": 2, "handed over": 2, "sick": 1, "rolled back": 1, "draining": 1, "drained": 1, "stopped": 1},
			"connections": {"moved": 1, "finished": 0, "waited": 0, "cut": 0}
		}`, "it is sick"},
		{"the new process", new, `{
			"generation": 2, "last": "alone",
			"events": {"ready": 1, "alone": 1},
			"connections": {}
		}`, ""},
	} {
		var got, want map[string]any
		if err := json.Unmarshal([]byte(c.said), &got); err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, c.said)
		}
		json.Unmarshal([]byte(c.want), &want)
		text, _ := got["error"].(string)
		at, _ := got["errorTime"].(string)
		delete(got, "error")
		delete(got, "errorTime")
		if !strings.Contains(text, c.err) || (text == "") != (c.err == "") {
			t.Errorf("%s: the error is %q, want %q in it", c.name, text, c.err)
		}
		if when, err := time.Parse(time.RFC3339, at); c.err != "" && (err != nil || time.Since(when) > time.Hour) {
			t.Errorf("%s: the error was at %q, want a moment ago", c.name, at)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s says %v\nwant %v", c.name, got, want)
		}
	}
}
