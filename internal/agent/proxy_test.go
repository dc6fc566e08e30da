package agent

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestProgramLeavesContent: over HTTP/1.1, the program answers without having read
// the request's content, or does not answer at all. The client gets the whole answer,
// and its next request is served.
func TestProgramLeavesContent(t *testing.T) {
	program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "enough") }))
	defer program.Close()
	dead := httptest.NewServer(nil)
	dead.Close()
	for name, row := range map[string]struct {
		address string
		want    int
	}{"answers": {program.Listener.Addr().String(), http.StatusOK}, "is dead": {dead.Listener.Addr().String(), http.StatusBadGateway}} {
		t.Run(name, func(t *testing.T) {
			proxy, closeIdle := newProxy(row.address, slog.New(slog.DiscardHandler))
			defer closeIdle()
			var said bytes.Buffer
			agent := httptest.NewUnstartedServer(proxy)
			agent.Config.ErrorLog = log.New(&said, "", 0)
			agent.Start()
			rt := &http.Transport{}
			defer rt.CloseIdleConnections()
			for _, size := range []int{1, 100 << 10} {
				for range 20 {
					body := io.MultiReader(strings.NewReader(strings.Repeat("x", size)))
					r, err := http.NewRequest(http.MethodPost, agent.URL, body)
					testworld.NoError(t, err)
					answer, err := rt.RoundTrip(r)
					if err != nil {
						t.Fatalf("%d bytes: %v", size, err)
					}
					if _, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != row.want {
						t.Errorf("%d bytes: got status %d, %v, want %d", size, answer.StatusCode, err, row.want)
					}
					answer.Body.Close()
				}
			}
			agent.Close()
			if said.Len() > 0 {
				t.Errorf("the server says %.300s", &said)
			}
		})
	}
}
