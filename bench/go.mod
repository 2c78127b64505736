module github.com/julofinance/grace/v3/bench

go 1.25.0

require (
	github.com/cloudflare/tableflip v1.2.3
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
	golang.org/x/sys v0.43.0
)

require github.com/oklog/run v1.2.0 // indirect

replace github.com/julofinance/grace/v3 => ..
