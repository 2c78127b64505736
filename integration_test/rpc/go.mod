module github.com/julofinance/grace/v3/integration_test/rpc

go 1.26.0

require (
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
	github.com/soheilhy/cmux v0.1.5
	golang.org/x/sys v0.48.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/oklog/run v1.2.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
)

replace github.com/julofinance/grace/v3 => ../..
