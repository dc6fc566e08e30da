package manager

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/tracecontext"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTraceContext: a valid trace context reaches the unit unchanged and is in the gateway's log of
// a refusal. Fields of another form reach neither.
func TestTraceContext(t *testing.T) {
	w := newWorld(t)
	w.stop()
	w.config.Log = slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.start()
	unit := w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, r.Header.Get(tracecontext.FieldParent)+"|"+r.Header.Get(tracecontext.FieldState))
	})
	w.cool()
	const trace = "0af7651916cd43dd8448eb211c80319c"
	parent := "00-" + trace + "-b7ad6b7169203331-01"
	c := w.client(bustest.DNSName(bustest.Scoring))
	send := func(to wire.UnitID, parent, state string) string {
		t.Helper()
		c.more = http.Header{"Traceparent": {parent}, "Tracestate": {state}}
		response := testworld.Must(c.post(t, wire.PathRequest, bytes.NewReader(header(to))))
		_, body, _ := read(t, response)
		return body
	}
	for _, row := range []struct{ parent, state, want string }{
		{parent, "a=1,b=2", parent + "|a=1,b=2"},
		{parent, "", parent + "|"},
		{parent, "not a state", parent + "|"},
		{"not a parent", "a=1", "|"},
		{strings.Replace(parent, trace, strings.Repeat("0", 32), 1), "a=1", "|"},
	} {
		if got := send(unit.ID, row.parent, row.state); got != row.want {
			t.Errorf("%q, %q: the unit received %q, want %q", row.parent, row.state, got, row.want)
		}
	}
	send(wire.UnitID{1}, parent, "") // no such unit
	send(wire.UnitID{1}, "hostile", "")
	if !w.log.says("trace="+trace) || w.log.says("hostile") {
		t.Errorf("the log has no trace, or one that is none: %s", w.log.text.String())
	}
}
