module github.com/julofinance/grace/compat/v1/fasthttp/v3

go 1.25.0

require (
	github.com/julofinance/grace/v3 v3.0.0-00010101000000-000000000000
	github.com/valyala/fasthttp v1.74.0
)

require (
	github.com/klauspost/compress v1.20.0 // indirect
	github.com/molecule-man/go-brrr v1.0.1 // indirect
	github.com/oklog/run v1.2.0 // indirect
	github.com/valyala/bytebufferpool v1.0.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)

replace github.com/julofinance/grace/v3 => ../../..
