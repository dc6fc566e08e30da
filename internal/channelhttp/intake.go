package channelhttp

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Bounded resources of a server are divided between the addresses of requests, and taken
// only by a request that can be served now. All requests through one gateway come from one
// address.
const (
	quotaReading  = "unit: bytes of one-off requests that are read"
	quotaOneOffs  = "unit: one-off requests under way"
	quotaEvidence = "unit: open requests that wait for evidence"
	quotaPulls    = "unit: stored copies asked for, a second"
)

const (
	maxReading   = 64 << 20 // bytes; of one-offs in one piece each counts as much as it may be
	chunkReading = chunk.MaxPlaintext
	leastReading = 4 << 10 // the least that a request counts as
	maxEvidence  = 64      // open requests that wait; one at a time is served
	pullsEach    = 500     // stored copies asked for in a second for one address, bursts of twice that
	maxSender    = 16      // characters of a sender's name
)

// bodyWait is the time limit for reading an open request, a one-off request in one piece,
// or the head of one in chunks.
const bodyWait = 10 * time.Second

// intake are the quotas of a server.
type intake struct {
	reading  *limit.Shares
	oneOffs  *limit.Shares
	evidence *limit.Turns
	pulls    *limit.Buckets
	now      func() time.Time // that the buckets fill by
}

func newIntake(l channel.Limits) *intake {
	return &intake{
		reading: limit.NewShares(quotaReading, maxReading), oneOffs: limit.NewShares(quotaOneOffs, l.OneOffs),
		evidence: limit.NewTurns(quotaEvidence, 1, maxEvidence), pulls: limit.NewBuckets(pullsEach), now: time.Now,
	}
}

// readWhole reads a body of at most limit bytes, and one more of a longer one, while
// the client has time for the whole.
func readWhole(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyWait)) // a server that has none has its own limit
	b, err := io.ReadAll(io.LimitReader(r.Body, int64(limit)+1))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{})
	}
	return b, err
}

// waitForEvidence waits for the only place at the TEE. The clients of a gateway take
// turns, as far as the gateway distinguishes them.
func (i *intake) waitForEvidence(r *http.Request) (done func(), err error) {
	sender := r.Header.Get(wire.FieldSender)
	if err := i.evidence.Acquire(r.Context(), limit.AddressOf(r.RemoteAddr), sender[:min(len(sender), maxSender)]); err != nil {
		return nil, err
	}
	if err := context.Cause(r.Context()); err != nil { // no client waits for the evidence
		i.evidence.Release()
		return nil, err
	}
	return i.evidence.Release, nil
}

// reserved is the share of one request, until it ends or needs it no more.
type reserved struct {
	shares *limit.Shares
	from   netip.Addr
	n      int // 0: nothing
}

// takeShare takes n more.
func (t *reserved) takeShare(n int) error {
	if err := t.shares.Acquire(t.from, n); err != nil {
		return err
	}
	t.n += n
	return nil
}

// giveBack returns what was taken.
func (t *reserved) giveBack() {
	if t.n > 0 {
		t.shares.Release(t.from, t.n)
		t.n = 0
	}
}

// ohttpReading returns how many bytes of a one-off request may be buffered.
func ohttpReading(f ohttp.Form, r *http.Request) int {
	most := ohttp.MaxWhole + chunk.MaxPlaintext/64 // with what precedes the ciphertext
	if f.Chunked {
		most = chunkReading
	}
	if r.ContentLength >= 0 && r.ContentLength < int64(most) {
		most = int(r.ContentLength)
	}
	return max(most, leastReading)
}
