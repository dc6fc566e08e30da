// Package oracles compares what this project writes, and the checks of its tests, with
// other people's implementations that only tests need: RFC 9999 wrappers, TDX quotes,
// linearizability. It is a module of its own, so that they are no dependency of the
// product. `make test` runs it; it needs no captured evidence.
package oracles
