module github.com/julofinance/grace/v3/integration_test/xnet

go 1.25.0

require (
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
	golang.org/x/net v0.55.0
)

require (
	github.com/oklog/run v1.2.0 // indirect
	golang.org/x/sys v0.45.0 // indirect
	golang.org/x/text v0.37.0 // indirect
)

replace github.com/julofinance/grace/v3 => ../..
