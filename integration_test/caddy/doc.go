// Package caddy runs upgrades of a program in which Caddy v2 serves, as
// github.com/caddyserver/caddy/v2 is embedded: caddy.Run starts it, caddy.Stop ends it.
package caddy
