// Package graceprom gives the events of a [grace.Upgrader] to Prometheus.
//
//	events := graceprom.New()
//	prometheus.MustRegister(events)
//	u, err := grace.New(grace.Events(events.Event))
//
// Each process counts for itself, from zero, and the one that serves is asked: a new one
// has completed no upgrade yet. So changes(grace_generation[1h]) is about the number of
// upgrades (a restart counts as one), and grace_events_total tells what went wrong in the
// process that serves on.
package graceprom

import (
	"strings"

	"github.com/julofinance/grace/v3"
	"github.com/prometheus/client_golang/prometheus"
)

// A Collector counts events. New gives one.
type Collector struct {
	generation          prometheus.Gauge
	events, connections *prometheus.CounterVec
	seconds             *prometheus.GaugeVec
}

// New gives a Collector of
//
//	grace_generation                      of this process
//	grace_events_total{event}             how often each has come, "handed_over" say
//	grace_connections_total{outcome}      of drains: moved, finished, waited, cut
//	grace_step_seconds{event}             the last time from the start of a new process until
//	                                      "handed_over", and of a drain until "drained"
func New() *Collector {
	return &Collector{
		generation: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "grace_generation", Help: "1 in a first process, and one more at each upgrade.",
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grace_events_total", Help: "Steps of upgrades and stops, in this process.",
		}, []string{"event"}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grace_connections_total", Help: "What became of the connections of this process when it drained.",
		}, []string{"outcome"}),
		seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "grace_step_seconds", Help: "How long a step has taken when it was last done in this process.",
		}, []string{"event"}),
	}
}

// Event counts e. It is the function for [grace.Events].
func (c *Collector) Event(e grace.Event) {
	name := strings.ReplaceAll(e.Kind.String(), " ", "_")
	c.generation.Set(float64(e.Generation))
	c.events.WithLabelValues(name).Inc()
	if e.Took > 0 {
		c.seconds.WithLabelValues(name).Set(e.Took.Seconds())
	}
	if e.Kind == grace.EventDrained {
		for outcome, n := range map[string]int{"moved": e.Moved, "finished": e.Finished, "waited": e.Waited, "cut": e.Cut} {
			c.connections.WithLabelValues(outcome).Add(float64(n))
		}
	}
}

// Describe and Collect make it a [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, part := range c.parts() {
		part.Describe(ch)
	}
}

// Collect gives what was counted.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, part := range c.parts() {
		part.Collect(ch)
	}
}

func (c *Collector) parts() []prometheus.Collector {
	return []prometheus.Collector{c.generation, c.events, c.connections, c.seconds}
}
