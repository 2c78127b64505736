// Package metricstest runs real upgrades for the tests of what counts their events: the test
// binary is the program that is upgraded. That needs Linux; elsewhere the package is empty.
package metricstest
