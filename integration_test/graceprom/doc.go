// Package graceprom has the test of the collector for Prometheus through real upgrades: it is
// no test of the collector's own module, which may not import what is internal here.
package graceprom
