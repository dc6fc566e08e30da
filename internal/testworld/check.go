package testworld

import (
	"context"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// waitLimit exceeds every wait in a test, on a busy machine too.
const waitLimit = 15 * time.Second

// Must returns the value of a call that should not fail, and panics on an error.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// NoError ends the test on an error in a step that later steps need.
func NoError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Refused fails the test unless err is a refusal for exactly this reason. The test
// continues, so that it reports further rows of a table.
func Refused(t testing.TB, err error, want wire.Reason) {
	t.Helper()
	if err == nil {
		t.Errorf("got no error, want reason %q", want)
	} else if got := wire.ReasonOf(err); got != want {
		t.Errorf("got reason %q (%v), want %q", got, err, want)
	}
}

// Eventually waits until another goroutine or process makes a condition true.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	Within(t, waitLimit, what, holds)
}

// Within is Eventually with a limit that is part of the test.
func Within(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// ShortContext returns a context with a deadline that ends a hanging call soon.
func ShortContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	t.Cleanup(cancel)
	return ctx
}
