module github.com/julofinance/grace/v3

go 1.25.0

require (
	github.com/oklog/run v1.2.0
	golang.org/x/sys v0.43.0
)
