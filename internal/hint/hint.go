// Package hint has errors that know what the operator may do about them.
package hint

// An Error has the text of the error in it, and advice beside it. It is for the log: the
// text alone does not have it.
type Error struct {
	error
	Do string // what to do, for the log
}

// New gives err the advice do. The result is an [*Error].
func New(err error, do string) error { return &Error{err, do} }

func (e *Error) Unwrap() error { return e.error }
