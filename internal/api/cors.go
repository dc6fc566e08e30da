package api

import (
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Header fields of the channel that a page may send, and those of responses that it may read. A
// one-off request has Incremental.
const (
	pageSends = "Content-Type, Incremental, " + wire.FieldAffinity + ", " + wire.FieldCookie + ", " + wire.FieldCredential + ", " + wire.FieldHead + ", " + wire.FieldTicket + ", " + wire.FieldUnit + ", traceparent, tracestate"
	pageReads = "Retry-After, " + wire.FieldCookie + ", " + wire.FieldHead + ", " + wire.FieldTime + ", " + wire.FieldUnits
)

// preflightSeconds is how long a browser may remember that a path is open to pages. It
// is the most that any of them keeps.
const preflightSeconds = "7200"

// ForPages opens a path to pages of all origins (Fetch standard, CORS protocol): what it serves
// depends on no cookie and on no other credential that a browser adds by itself, so a page learns
// nothing that its own server could not fetch.
func ForPages(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", "GET, POST")
			h.Set("Access-Control-Allow-Headers", pageSends)
			h.Set("Access-Control-Max-Age", preflightSeconds)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.Set("Access-Control-Expose-Headers", pageReads)
		f(w, r)
	}
}
