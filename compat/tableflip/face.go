package tableflip

import (
	"context"

	"github.com/julofinance/grace/v3"
)

// What this package needs of grace's public face and what may change there.

func noSignals() grace.Option { return grace.NoSignals() }

// stopService returns at once.
func stopService(u *grace.Upgrader) { go u.Shutdown(context.Background()) }
