package unit

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

func TestStart(t *testing.T) {
	for _, task := range []string{"scoring", "keys"} {
		t.Run(task, func(t *testing.T) {
			w := unittest.New(t, "1h")
			u := started(w, task, w.Authority(w.AuthorityKeys))
			testworld.NoError(t, u.Ready())
			if got := u.Identity(); got.Task != task || got.Release != "1" || got.ID.IsZero() {
				t.Errorf("got identity of task %q release %q id %v", got.Task, got.Release, got.ID)
			}
			if got := u.Stats(); got.Renewals != 1 || got.Failures != 0 || got.NotAfter.Before(time.Now()) {
				t.Errorf("got %+v, want one renewal", got)
			}
		})
	}
}

func TestEnv(t *testing.T) {
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	if got := u.Environment(); len(got) != 1 || got["LANG"] != "C" {
		t.Errorf("got environment %v, want LANG=C", got)
	}
}

func TestConfigTellsAllFaults(t *testing.T) {
	_, err := Start(t.Context(), Config{Authorities: []string{"http://plain.example"}, Task: "Not A Name"})
	testworld.Refused(t, err, wire.BadRequest)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("got %v, want 4 faults: authority, genesis, task, attester", err)
	}
	_, err = Start(t.Context(), Config{})
	testworld.Refused(t, err, wire.BadRequest)
}

func TestHealth(t *testing.T) {
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	h := u.Health()
	get := func(path string, status int) map[string]any {
		t.Helper()
		r := httptest.NewRecorder()
		h.ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, nil))
		if r.Code != status {
			t.Errorf("%s: got status %d, want %d", path, r.Code, status)
		}
		var body map[string]any
		testworld.NoError(t, json.Unmarshal(r.Body.Bytes(), &body))
		return body
	}
	get("/livez", http.StatusOK)
	if got := get("/readyz", http.StatusOK); got["ready"] != true {
		t.Errorf("got %v, want ready", got)
	}
	if got := get("/stats", http.StatusOK); got["renewals"] != 1.0 {
		t.Errorf("got %v, want one renewal", got)
	}
	u.Close()
	get("/livez", http.StatusOK)
	if got := get("/readyz", http.StatusServiceUnavailable); got["reason"] != string(wire.NotEnrolled) {
		t.Errorf("got %v, want reason %q", got, wire.NotEnrolled)
	}
}

// TestNothingLeft: Close ends everything that Start and Serve started.
func TestNothingLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("lives", func(t *testing.T) {
		w := unittest.New(t, "1h")
		u := started(w, "keys", w.Authority(w.AuthorityKeys))
		get(t, user(w, u, "HTTP/2.0"), serve(t, u, hello))
		_, err := Start(testworld.ShortContext(t), Config{Authorities: configOf(w, "keys", w.Authority(w.AuthorityKeys)).Authorities, Genesis: wire.Digest{1}, Task: "keys", Attester: configOf(w, "keys").Attester})
		testworld.Refused(t, err, wire.WrongGenesis)
	})
	testworld.Within(t, 5*time.Second, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
