// Package compat sets the packages of compat/ against what they stand in for.
package compat
