package records

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxNoted bounds, for each table, the damaged rows that are named and remembered as logged.
const maxNoted = 256

// Damage collects damaged rows of the store, which readers skip: rows whose MAC shows that no
// authority of this root wrote them in this form. A damaged row loses only its own content. It
// is reported in the log, in the metrics and by the API resources of its table. The zero Damage
// has no rows. Damage is safe for concurrent use.
type Damage struct {
	Rows *prometheus.GaugeVec // by table; nil without metrics

	mu     sync.Mutex
	found  map[string][]string // guarded by mu: by table, as last read
	logged map[string]bool     // guarded by mu
}

// Report replaces the damaged rows of a table by those that the last read found. It logs each row
// once.
func (d *Damage) Report(log *slog.Logger, table string, faults []error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil {
		d.found, d.logged = map[string][]string{}, map[string]bool{}
	}
	if d.Rows != nil {
		d.Rows.WithLabelValues(table).Set(float64(len(faults)))
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

// RowsOf returns the damaged rows of a table, each with its fault.
func (d *Damage) RowsOf(table string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.found[table])
}

// Tables returns the tables with damaged rows, in order.
func (d *Damage) Tables() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Faults returns err as a list, which is empty when err is nil.
func Faults(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}
