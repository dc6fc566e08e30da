package authority

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/prometheus/client_golang/prometheus"
)

// maxNoted bounds the rows that are named, and remembered as logged, of one table.
const maxNoted = 256

// damage is what was passed over in the store: rows that this authority did not write
// as they are. A damaged row costs only its own content, and is
// named in the log, in metrics, and where its table is shown.
// The zero damage is none.
type damage struct {
	rows *prometheus.GaugeVec // by table; nil without metrics

	mu     sync.Mutex
	found  map[string][]string // guarded by mu: by table, as last read
	logged map[string]bool     // guarded by mu
}

// note replaces what is known of a table by what the last reading found. Each row
// is logged once.
func (d *damage) note(log *slog.Logger, table string, faults []error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil {
		d.found, d.logged = map[string][]string{}, map[string]bool{}
	}
	if d.rows != nil {
		d.rows.WithLabelValues(table).Set(float64(len(faults)))
	}
	delete(d.found, table)
	for _, err := range faults[:min(len(faults), maxNoted)] {
		text := err.Error()
		d.found[table] = append(d.found[table], text)
		if !d.logged[text] && len(d.logged) < 8*maxNoted {
			d.logged[text] = true
			log.Error("a row of the store is damaged and passed over", "table", table, "error", err)
		}
	}
}

// of are the damaged rows of a table, each with what is wrong.
func (d *damage) of(table string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.found[table])
}

// tables are those with damaged rows, in order.
func (d *damage) tables() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// believed reports for rows of a table whether each carries its tag.
func (a *Authority) believed(table string) func(store.Row) bool {
	return func(r store.Row) bool { return a.tagged(table, r) }
}

// faults is a list of the one error, or of none.
func faults(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}
