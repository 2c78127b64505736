package graceprom_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/julofinance/grace/metrics/graceprom/v3"
	"github.com/julofinance/grace/v3/integration_test/metricstest"
	"github.com/prometheus/client_golang/prometheus"
)

func TestMain(m *testing.M) {
	c := graceprom.New()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	metricstest.Main(m, c.Event, func() string { return gathered(registry) })
}

// gathered is what Prometheus would be given, as JSON: a number for each metric.
func gathered(registry *prometheus.Registry) string {
	families, err := registry.Gather()
	if err != nil {
		return err.Error()
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "grace_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() // it is one of both
		}
	}
	b, _ := json.Marshal(all)
	return string(b)
}

// TestCollectorOfUpgrades: an upgrade that is rolled back, and one that succeeds.
func TestCollectorOfUpgrades(t *testing.T) {
	rolledBack, old, new := metricstest.Upgrades(t)
	for _, c := range []struct {
		name, said string
		want       map[string]float64
		took       []string // what has taken some time
	}{
		{"the old process after the roll back", rolledBack, map[string]float64{
			"generation": 1, "events_total ready": 1, "events_total asked": 1, "events_total started": 1,
			"events_total handed_over": 1, "events_total sick": 1, "events_total rolled_back": 1,
		}, []string{"handed_over"}},
		{"the old process at its end", old, map[string]float64{
			"generation": 1, "events_total ready": 1, "events_total asked": 2, "events_total started": 2,
			"events_total handed_over": 2, "events_total sick": 1, "events_total rolled_back": 1,
			"events_total draining": 1, "events_total drained": 1, "events_total stopped": 1,
			"connections_total moved": 1, "connections_total finished": 0, "connections_total waited": 0, "connections_total cut": 0,
		}, []string{"handed_over", "drained"}},
		{"the new process", new, map[string]float64{"generation": 2, "events_total ready": 1, "events_total alone": 1}, nil},
	} {
		var got map[string]float64
		if err := json.Unmarshal([]byte(c.said), &got); err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, c.said)
		}
		for _, step := range c.took {
			if got["step_seconds "+step] <= 0 {
				t.Errorf("%s: %s has taken %v s", c.name, step, got["step_seconds "+step])
			}
			delete(got, "step_seconds "+step)
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s says %v\nwant %v", c.name, got, c.want)
		}
	}
}
