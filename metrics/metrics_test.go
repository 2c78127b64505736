package metrics

import (
	"encoding/json"
	"errors"
	"expvar"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
)

// tests counts the runs of TestExpvar: a name can be published once.
var tests int

func TestExpvar(t *testing.T) {
	tests++
	name := "grace " + strconv.Itoa(tests)
	event := Expvar(name)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, e := range []grace.Event{
		{Kind: grace.EventReady, Generation: 3},
		{Kind: grace.EventFailed, Generation: 3, Time: at, Err: errors.New("why")},
		{Kind: grace.EventSick, Generation: 3, Time: at, Err: errors.New("it says 500")},
		{Kind: grace.EventRolledBack, Generation: 3, Time: at, Err: &grace.UpgradeError{Reason: grace.ErrUnhealthy, Pid: 7, Err: errors.New("it says 500")}},
		{Kind: grace.EventDrained, Generation: 3, Moved: 1, Finished: 2, Waited: 3, Cut: 4},
		{Kind: grace.EventDrained, Generation: 3, Moved: 10},
	} {
		event(e)
	}
	unhealthy := (&grace.UpgradeError{Reason: grace.ErrUnhealthy, Pid: 7, Err: errors.New("it says 500")}).Error()
	var got, want map[string]any
	if err := json.Unmarshal([]byte(expvar.Get(name).String()), &got); err != nil {
		t.Fatal(err)
	}
	json.Unmarshal([]byte(`{
		"generation": 3, "last": "drained", "error": `+strconv.Quote(unhealthy)+`, "errorTime": "2026-01-02T03:04:05Z",
		"events": {"ready": 1, "failed": 1, "sick": 1, "rolled back": 1, "drained": 2},
		"connections": {"moved": 11, "finished": 2, "waited": 3, "cut": 4}
	}`), &want)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
