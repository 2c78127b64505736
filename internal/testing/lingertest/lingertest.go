// Package lingertest paces the tests of long streams over several upgrades: as fast as it
// goes, or with -linger-long as a service would have it, which takes a minute and a half.
package lingertest

import (
	"flag"
	"testing"
	"time"
)

var long = flag.Bool("linger-long", false, "5 s from the beginning of an upgrade to that of the next one, and each stream held for 60 s at least")

// Upgrades is how many a stream outlives.
const Upgrades = 5

// What the long run sees to.
const (
	apart  = 5 * time.Second  // from the beginning of an upgrade to that of the next
	hold   = 60 * time.Second // each stream, at least
	within = 3 * time.Second  // of probation's end, until the upgrade is over
)

// A Run is one test's.
type Run struct {
	t        testing.TB
	live     func() // see New
	upgrades []time.Time
	opened   []opened
}

// opened is when streams of one generation were opened.
type opened struct {
	name     string
	at       time.Time
	upgrades int // that were before
}

// New gives a run whose streams are at work in live: it sends something over each, and
// ends the test if one was cut.
func New(t testing.TB, live func()) *Run { return &Run{t: t, live: live} }

// Opened is called when streams were opened.
func (r *Run) Opened(name string) {
	r.opened = append(r.opened, opened{name, time.Now(), len(r.upgrades)})
}

// Upgrade returns when the next upgrade is to begin.
func (r *Run) Upgrade() {
	r.t.Helper()
	began := time.Now()
	if n := len(r.upgrades); n > 0 {
		began = r.upgrades[n-1]
	}
	r.until(began.Add(apart))
	now := time.Now()
	if n := len(r.upgrades); n > 0 {
		r.t.Logf("upgrade %d begins %v after the one before", n+1, now.Sub(began).Round(time.Millisecond))
	}
	r.upgrades = append(r.upgrades, now)
}

// Over is called when an upgrade is over, with the time since probation's end. A short run
// prints it only.
func (r *Run) Over(took time.Duration) {
	r.t.Helper()
	r.t.Logf("upgrade %d is over %v after probation's end", len(r.upgrades), took.Round(time.Millisecond))
	if *long && took > within {
		r.t.Errorf("upgrade %d was over %v after probation's end, want %v at most", len(r.upgrades), took, within)
	}
}

// End returns when the streams may be closed: none was cut.
func (r *Run) End() {
	r.t.Helper()
	if len(r.upgrades) != Upgrades {
		r.t.Errorf("%d upgrades were made, want %d", len(r.upgrades), Upgrades)
	}
	if n := len(r.opened); n > 0 {
		r.until(r.opened[n-1].at.Add(hold))
	}
	for _, o := range r.opened {
		r.t.Logf("%s: held for %v, over %d upgrades, not cut", o.name, time.Since(o.at).Round(time.Millisecond), len(r.upgrades)-o.upgrades)
	}
}

// until lets the streams work, once, and in a long run until a time.
func (r *Run) until(end time.Time) {
	r.t.Helper()
	for r.live(); *long && time.Now().Before(end); r.live() {
		time.Sleep(10 * time.Millisecond)
	}
}
