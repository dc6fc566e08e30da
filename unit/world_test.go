package unit

import (
	"log/slog"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// configOf returns the configuration of a unit that runs the program of a task.
func configOf(w *unittest.World, task string, authorities ...*unittest.Authority) Config {
	c := Config{
		Genesis:  w.Genesis(),
		Task:     task,
		Attester: w.Vendor.Chip().Attester(attesttest.Measure(task)),
		Log:      slog.New(slog.NewTextHandler(w.T.Output(), nil)),
	}
	for _, a := range authorities {
		c.Authorities = append(c.Authorities, a.URL)
	}
	return c
}

// started starts a unit that the test closes.
func started(w *unittest.World, task string, authorities ...*unittest.Authority) *Unit {
	w.T.Helper()
	u, err := Start(w.T.Context(), configOf(w, task, authorities...))
	testworld.NoError(w.T, err)
	w.T.Cleanup(u.Close)
	return u
}
