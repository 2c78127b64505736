// Command example is one of the examples of a library that compat/ stands in for;
// the tests bring its function main.
package main

import (
	"net/http"

	"github.com/julofinance/grace/v3/internal/load"
)

func init() { http.Handle("/", load.Handler()) }
