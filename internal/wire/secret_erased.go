//go:build goexperiment.runtimesecret

package wire

import "runtime/secret"

// Secretly runs f. What f leaves on the stack, in registers and in memory that
// nothing refers to any more is erased. f starts no goroutine.
func Secretly(f func()) { secret.Do(f) }
