package sockets

import (
	"errors"
	"net"
	"time"
)

// A read deadline goes through every wrapper of a connection, TLS too. So two
// times that no clock will ever show are used as marks, to find our own
// connection below a wrapper, and are not set as deadlines. No other time equals
// them: their location is known only here.
var (
	markZone = time.FixedZone("grace", 0)

	// PostMark tells that the request that is answered is a POST.
	PostMark = time.Date(3000, 1, 1, 0, 0, 0, 0, markZone)
	// whoseMark asks which connection this is: the answer is a whoseError.
	whoseMark = time.Date(3000, 1, 2, 0, 0, 0, 0, markZone)
)

type whoseError struct{ t *Track }

func (whoseError) Error() string {
	return "not an error: grace looks for its connection below a wrapper"
}

// TrackBelow finds our connection below a wrapper whose addresses may be others
// (the PROXY protocol's are), and which hides it otherwise. c is not in use yet.
// The deadline that the wrapper may have set on our connection stays.
func TrackBelow(c net.Conn) *Track {
	err := c.SetReadDeadline(whoseMark)
	var answer whoseError
	if !errors.As(err, &answer) {
		c.SetReadDeadline(time.Time{})
		return nil
	}
	t := answer.t
	t.mu.Lock()
	want := t.Want
	t.mu.Unlock()
	c.SetReadDeadline(time.Time{}) // the wrapper may remember it
	t.setReadDeadline(want)
	return t
}
