module github.com/julofinance/grace/v3/example/websocket

go 1.25.0

require (
	github.com/gorilla/websocket v1.5.3
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
)

require (
	github.com/oklog/run v1.2.0 // indirect
	golang.org/x/sys v0.43.0 // indirect
)

replace github.com/julofinance/grace/v3 => ../..
