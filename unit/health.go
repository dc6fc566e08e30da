package unit

import (
	"encoding/json"
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// readiness is the content of a response for /readyz.
type readiness struct {
	Ready  bool        `json:"ready"`
	Reason wire.Reason `json:"reason,omitempty"`
	Detail string      `json:"detail,omitempty"`
}

// Health serves /livez with 200, /readyz with 200 or 503 and the reason of [Unit.Ready], and
// /stats with [Stats], all JSON. The responses contain no secrets. Serve Health on a listener
// without the unit's certificate: a unit that is not ready cannot serve TLS with that
// certificate.
func (u *Unit) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, struct {
			Live bool `json:"live"`
		}{true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := u.Ready(); err != nil {
			writeJSON(w, http.StatusServiceUnavailable, readiness{Reason: wire.ReasonOf(err), Detail: err.Error()})
			return
		}
		writeJSON(w, http.StatusOK, readiness{Ready: true})
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, u.Stats())
	})
	return mux
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error means that the client has disconnected.
	_ = json.NewEncoder(w).Encode(body)
}
