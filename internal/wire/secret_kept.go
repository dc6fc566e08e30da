//go:build !goexperiment.runtimesecret

package wire

// Secretly runs f. A build with GOEXPERIMENT=runtimesecret, which released
// binaries are, erases what f leaves in memory; this one does not.
func Secretly(f func()) { f() }
