// Package statuspage serves what a manager knows of its cluster to the operator: a page that works
// without scripts, and the same as JSON.
//
// All it shows is a hint. The manager is untrusted, and units report their load themselves. Text of
// units is escaped (html/template), and the page runs no script, loads nothing but its own style
// sheet and cannot be framed. Serve it apart from clients: it shows addresses and load.
package statuspage

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"time"
)

// Paths of the page, its style sheet and the JSON form.
const (
	pathPage  = "/{$}"
	pathStyle = "/status.css"
	pathJSON  = "/status.json"
)

// Schema is the schema of the JSON form.
const schema = "cohort/manager-status/v1"

// Status is what a manager knows. Times are of the manager's clock.
type Status struct {
	Schema         string    `json:"schema"`
	Note           string    `json:"note"`
	At             time.Time `json:"at"`
	Version        string    `json:"version"` // of the manager
	Started        time.Time `json:"started"`
	Joined         bool      `json:"joined"`          // to other managers
	BusConnections int       `json:"bus_connections"` // units that are connected to this manager
	InFlight       int       `json:"in_flight"`       // requests in progress through this gateway
	Copies         int       `json:"copies"`          // sealed sessions stored
	CopiesBytes    int       `json:"copies_bytes"`
	PolicyHead     string    `json:"policy_head,omitempty"` // hexadecimal; empty: no history
	PolicySteps    int       `json:"policy_steps,omitempty"`
	Releases       []Release `json:"releases"`
	Units          []Unit    `json:"units"`
}

// Release is an identity with the sums of its units.
type Release struct {
	Task     string `json:"task"`     // or GROUP/ROLE
	Identity string `json:"identity"` // hexadecimal
	Units    int    `json:"units"`
	Ready    int    `json:"ready"`
	InFlight int    `json:"in_flight"` // as units report
	Sessions int    `json:"sessions"`  // as units report; a session counts at each unit that has it
}

// State is the state of a unit for the gateway.
type State string

// A paused unit does not respond and is tried again later.
const (
	Ready    State = "ready"
	NotReady State = "not ready"
	Paused   State = "paused"
)

// Unit is one unit with a recent heartbeat.
type Unit struct {
	ID       string    `json:"id"`
	Task     string    `json:"task"`
	Identity string    `json:"identity"`
	Address  string    `json:"address"`
	State    State     `json:"state"`
	InFlight int       `json:"in_flight"` // as the unit reports, over all gateways
	Here     int64     `json:"here"`      // requests in progress through this gateway
	Sessions int       `json:"sessions"`  // as the unit reports
	Seen     time.Time `json:"seen"`      // last heartbeat
	NotAfter time.Time `json:"not_after"` // end of its certificate
}

// note is printed with every form of the status.
const note = "This is a hint from an untrusted party. A manager can show anything; what clients rely on, they verify themselves."

//go:embed page.html status.css
var files embed.FS

// page is the parsed template.
var page = template.Must(template.New("page.html").Funcs(template.FuncMap{
	"short": func(s string) string { return s[:min(len(s), 12)] },
	"bytes": formatBytes,
	"clock": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"since": func(at, before time.Time) string { return max(0, at.Sub(before)).Round(time.Second).String() },
}).ParseFS(files, "page.html"))

// Pages returns the handler of the three paths. The function read returns the present status;
// it is called for each request.
func Pages(read func() Status) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathPage, func(w http.ResponseWriter, _ *http.Request) { servePage(w, complete(read())) })
	mux.HandleFunc("GET "+pathJSON, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(complete(read())) // the operator may be gone
	})
	mux.HandleFunc("GET "+pathStyle, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "status.css") })
	return mux
}

// complete returns s with the fields that do not depend on the manager.
func complete(s Status) Status {
	s.Schema, s.Note = schema, note
	if s.Units == nil {
		s.Units = []Unit{}
	}
	s.Releases = releasesOf(s.Units)
	return s
}

// releasesOf sums up units by identity and task, in the order of the units.
func releasesOf(units []Unit) []Release {
	releases, index := []Release{}, map[[2]string]int{}
	for _, u := range units {
		key := [2]string{u.Task, u.Identity}
		if _, known := index[key]; !known {
			index[key] = len(releases)
			releases = append(releases, Release{Task: u.Task, Identity: u.Identity})
		}
		r := &releases[index[key]]
		r.Units++
		if u.State == Ready {
			r.Ready++
		}
		r.InFlight += u.InFlight
		r.Sessions += u.Sessions
	}
	return releases
}

func servePage(w http.ResponseWriter, s Status) {
	var b bytes.Buffer
	if err := page.Execute(&b, s); err != nil {
		http.Error(w, "making the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(b.Bytes()) // the operator may be gone
}

// formatBytes returns a size in bytes as text with a binary unit.
func formatBytes(n int) string {
	for _, u := range []struct {
		size int
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
