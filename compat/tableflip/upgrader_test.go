package tableflip

import (
	"errors"
	"testing"

	"github.com/julofinance/grace/v3"
)

// TestNotSupported: where processes can't be replaced New says so, by an error that
// matches grace's and that of package errors, and makes nothing.
func TestNotSupported(t *testing.T) {
	before := supported
	supported = false
	t.Cleanup(func() { supported = before })
	for range 2 { // the first call has not used up the only one
		upg, err := New(Options{})
		if upg != nil || !errors.Is(err, ErrNotSupported) {
			t.Errorf("New gives %v, %v, want ErrNotSupported", upg, err)
		}
	}
	for _, want := range []error{grace.ErrNotSupported, errors.ErrUnsupported} {
		if !errors.Is(ErrNotSupported, want) {
			t.Errorf("%v is not %v", ErrNotSupported, want)
		}
	}
	if errors.Is(errTerminating, ErrNotSupported) {
		t.Errorf("%v is ErrNotSupported", errTerminating)
	}
}
