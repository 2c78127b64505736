package tableflip

import "github.com/julofinance/grace/v3"

// What this package needs of grace's public face and what may change there.

func noSignals() grace.Option { return grace.Signals() }

func stopService(u *grace.Upgrader) { u.Stop() }
