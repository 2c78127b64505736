// Package metrics counts the events of a [grace.Upgrader] in variables of package expvar.
// (It is a package of its own since to import expvar adds a handler to
// http.DefaultServeMux.) A collector for Prometheus is the module
// github.com/julofinance/grace/metrics/graceprom/v3.
//
// Each process counts for itself, from zero: a new one has completed no upgrade yet. What
// tells that an upgrade has succeeded is that generation has grown.
package metrics

import (
	"expvar"
	"time"

	"github.com/julofinance/grace/v3"
)

// Expvar publishes a map of this name, and returns the function that keeps it, to be given
// to [grace.Events]:
//
//	generation   of this process
//	events       how often each event has come, by its name
//	connections  what became of them in drains: moved, finished, waited, cut
//	last         the last event
//	error        that of the last event that had one
//	errorTime    when that was, RFC 3339
//
// Like expvar.Publish it panics if the name is in use.
func Expvar(name string) func(grace.Event) {
	var generation expvar.Int
	var last, lastError, errorTime expvar.String
	events, connections := new(expvar.Map), new(expvar.Map)
	m := expvar.NewMap(name)
	for key, v := range map[string]expvar.Var{
		"generation": &generation, "events": events, "connections": connections,
		"last": &last, "error": &lastError, "errorTime": &errorTime,
	} {
		m.Set(key, v)
	}
	return func(e grace.Event) {
		generation.Set(int64(e.Generation))
		last.Set(e.Kind.String())
		events.Add(e.Kind.String(), 1)
		if e.Err != nil {
			lastError.Set(e.Err.Error())
			errorTime.Set(e.Time.Format(time.RFC3339))
		}
		if e.Kind == grace.EventDrained {
			for key, n := range map[string]int{"moved": e.Moved, "finished": e.Finished, "waited": e.Waited, "cut": e.Cut} {
				connections.Add(key, int64(n))
			}
		}
	}
}
