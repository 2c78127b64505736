module github.com/julofinance/grace/v3/integration_test/dns

go 1.25.0

require (
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
	github.com/miekg/dns v1.1.73
	github.com/oklog/run v1.2.0
)

require (
	golang.org/x/net v0.57.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)

replace github.com/julofinance/grace/v3 => ../..
