package sockets

import (
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/julofinance/grace/v3/internal/gate"
)

// A deadlineConn is an inner connection that notes its read deadlines. Its Reads
// are answered in turn.
type deadlineConn struct {
	net.Conn
	reads []func() (int, error)
	set   []time.Time
}

func (c *deadlineConn) Read([]byte) (int, error) {
	read := c.reads[0]
	c.reads = c.reads[1:]
	return read()
}

func (c *deadlineConn) SetReadDeadline(t time.Time) error {
	c.set = append(c.set, t)
	return nil
}

// TestWakeIsTakenBack: a Read that a deadline in the past has woken, so that its
// connection moves, leaves the deadline behind that the server or the idle grace
// wants.
func TestWakeIsTakenBack(t *testing.T) {
	const grace = 30 * time.Minute
	wake := func(n int, err error, then ...func(*Track)) func(*Track) func() (int, error) {
		return func(t *Track) func() (int, error) {
			return func() (int, error) {
				t.Offer(&Mover{})
				for _, f := range then {
					f(t)
				}
				return n, err
			}
		}
	}
	callOff := func(t *Track) { t.Offer(nil) }
	end := func(t *Track) { t.Finish(0) }
	byteComes := func(*Track) func() (int, error) { return func() (int, error) { return 1, nil } }
	for _, c := range []struct {
		name  string
		grace time.Duration // of a drain that has begun before
		reads []func(*Track) func() (int, error)
		err   error
		set   []string
		life  life
		flags deadlineFlags
	}{
		{
			name: "it moves", reads: []func(*Track) func() (int, error){wake(0, os.ErrDeadlineExceeded)},
			err: os.ErrDeadlineExceeded, set: []string{"want", "past", "want"}, life: lifeLeaving, flags: deadlineOnRead,
		},
		{
			name: "bytes come", reads: []func(*Track) func() (int, error){wake(1, nil)},
			set: []string{"want", "past", "want"}, flags: deadlineOnRead,
		},
		{
			name: "called off", reads: []func(*Track) func() (int, error){wake(0, os.ErrDeadlineExceeded, callOff), byteComes},
			set: []string{"want", "past", "want"}, flags: deadlineOnRead,
		},
		{
			name: "bytes come in a drain", grace: grace, reads: []func(*Track) func() (int, error){wake(1, nil)},
			set: []string{"grace", "past", "want", "grace"}, flags: deadlineOnRead | deadlineBounded,
		},
		{
			// Each Finish and Offer in between gives the server its deadline back.
			name: "drain and move called off", grace: grace,
			reads: []func(*Track) func() (int, error){wake(0, os.ErrDeadlineExceeded, callOff, end), byteComes},
			set:   []string{"grace", "past", "want", "want"}, flags: deadlineOnRead,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner := &deadlineConn{}
			track := &Track{}
			track.begin(inner, &Listener{}, nil, nil, nil)
			track.SetKnown(true)
			want := time.Now().Add(time.Hour)
			track.setReadDeadline(want)
			track.Finish(c.grace)
			for _, read := range c.reads {
				inner.reads = append(inner.reads, read(track))
			}
			if _, err := track.read(track.Inner, make([]byte, FullSlice)); !errors.Is(err, c.err) {
				t.Errorf("Read: %v, want %v", err, c.err)
			}
			var set []string
			for _, d := range inner.set {
				switch {
				case d.Equal(want):
					set = append(set, "want")
				case d.Equal(gate.LongAgo):
					set = append(set, "past")
				case d.After(time.Now()) && d.Before(want):
					set = append(set, "grace")
				default:
					set = append(set, d.String())
				}
			}
			if !slices.Equal(set, c.set) {
				t.Errorf("the read deadlines were %q, want %q", set, c.set)
			}
			if track.life != c.life || track.deadline.flags != c.flags {
				t.Errorf("life %d, flags %06b; want %d, %06b", track.life, track.deadline.flags, c.life, c.flags)
			}
		})
	}
}
