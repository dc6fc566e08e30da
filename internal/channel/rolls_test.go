package channel

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestPairsAcrossRestarts collects the (subkey, nonce) pairs of many messages of a unit that
// restarts several times, 10^7 of them with COHORT_FULL. Each message is one chunk, so its
// subkey, named by its derivation inputs, must be new.
func TestPairsAcrossRestarts(t *testing.T) {
	const restarts = 10
	messages := 20_000
	if os.Getenv("COHORT_FULL") != "" && !testing.Short() {
		messages = 10_000_000
	}
	w := newWorld(t)
	seen := make([]uint64, 0, messages)
	note := func(parts ...[]byte) {
		sum := wire.Sum(bytes.Join(parts, nil))
		seen = append(seen, binary.BigEndian.Uint64(sum[:])) // with 10^7 values, a false match has probability 2^-18
	}
	for range restarts {
		h := w.host(Limits{})
		s, _ := w.opened(h, w.byTask())
		for range messages / restarts / 2 {
			x := testworld.Must(s.newRequest(h.ID(), noon.Add(time.Minute), 0))
			body := testworld.Must(x.Whole(bhttp.Head{Method: "GET", Scheme: "https", Path: "/"}, nil))
			in := testworld.Must(h.findSession([wire.HeaderSize]byte(body), noon))
			testworld.Must(0, in.openFirst(bytes.NewReader(body[wire.HeaderSize:]), atNoon))
			note([]byte("request"), x.raw[:])
			note([]byte("answer"), x.raw[:], testworld.Must(in.responseWithoutContent(KindNotExecuted, wire.Expired))[:responsePrefix])
		}
	}
	if len(seen) != messages {
		t.Errorf("got %d messages, want %d", len(seen), messages)
	}
	slices.Sort(seen)
	if distinct := len(slices.Compact(seen)); distinct != messages {
		t.Errorf("got %d pairs of %d messages, want one each", distinct, messages)
	}
}
