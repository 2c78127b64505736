package graceprom

import (
	"strings"
	"testing"
	"time"

	"github.com/julofinance/grace/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestCollector(t *testing.T) {
	c := New()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	for _, e := range []grace.Event{
		{Kind: grace.EventReady, Generation: 3},
		{Kind: grace.EventHandedOver, Generation: 3, Took: 1500 * time.Millisecond},
		{Kind: grace.EventDrained, Generation: 3, Took: 2 * time.Second, Moved: 1, Finished: 2, Waited: 3, Cut: 4},
	} {
		c.Event(e)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP grace_connections_total What became of the connections of this process when it drained.
# TYPE grace_connections_total counter
grace_connections_total{outcome="cut"} 4
grace_connections_total{outcome="finished"} 2
grace_connections_total{outcome="moved"} 1
grace_connections_total{outcome="waited"} 3
# HELP grace_events_total Steps of upgrades and stops, in this process.
# TYPE grace_events_total counter
grace_events_total{event="drained"} 1
grace_events_total{event="handed_over"} 1
grace_events_total{event="ready"} 1
# HELP grace_generation 1 in a first process, and one more at each upgrade.
# TYPE grace_generation gauge
grace_generation 3
# HELP grace_step_seconds How long a step has taken when it was last done in this process.
# TYPE grace_step_seconds gauge
grace_step_seconds{event="drained"} 2
grace_step_seconds{event="handed_over"} 1.5
`)); err != nil {
		t.Error(err)
	}
}
