module github.com/julofinance/grace/v3/integration_test/quic

go 1.25.0

require (
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
	github.com/quic-go/quic-go v0.59.0
)

require (
	github.com/oklog/run v1.2.0 // indirect
	golang.org/x/crypto v0.41.0 // indirect
	golang.org/x/net v0.43.0 // indirect
	golang.org/x/sys v0.43.0 // indirect
)

replace github.com/julofinance/grace/v3 => ../..
