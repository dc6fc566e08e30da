package systest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestAffinityOfClients: through a real gateway, one unit executes all requests of a channel with
// one Cohort-Affinity field, whether the client or the gateway selects the unit, and all one-off
// requests with one. Different fields reach different units, and no program receives the field.
func TestAffinityOfClients(t *testing.T) {
	t.Parallel()
	c := New(t, scoring(time.Hour))
	c.StartManager()
	for i := range 3 {
		unit := c.Start("scoring", "scoring 1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(wire.FieldAffinity) != "" {
				t.Errorf("a program received %v", r.Header)
			}
			fmt.Fprint(w, i)
		}))
		attended(t, unit)
	}
	for name, through := range map[string]struct {
		http.RoundTripper
		methods []string
	}{
		"channel": {c.OpenChannel(c.OpenConfig("scoring")), []string{http.MethodPost, http.MethodGet}},
		"one-off": {oneOff(t, c, trust(t, c), false), []string{http.MethodGet}},
	} {
		used := map[string]bool{}
		for key := range 12 {
			served := ""
			for n := range 6 {
				r := testworld.Must(http.NewRequestWithContext(t.Context(), through.methods[n%len(through.methods)], scoringURL+"/", strings.NewReader("x")))
				r.Header.Set(wire.FieldAffinity, fmt.Sprint("conversation ", key))
				response, err := through.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				by := string(testworld.Must(io.ReadAll(response.Body)))
				response.Body.Close()
				if used[by] = true; served != "" && by != served {
					t.Errorf("%s: request %d of key %d: got unit %s, want %s", name, n, key, by, served)
				}
				served = by
			}
		}
		if len(used) < 2 {
			t.Errorf("%s: 12 keys reach %d units", name, len(used))
		}
	}
}
