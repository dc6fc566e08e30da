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

// Quotas divide limited resources of a server between the addresses that send requests. Only a
// request that can be served now uses a resource. All requests through one gateway come from one
// address.
const (
	quotaReading  = "unit: bytes of one-off requests that are read"
	quotaOneOffs  = "unit: one-off requests under way"
	quotaEvidence = "unit: open requests that wait for evidence"
	quotaPulls    = "unit: stored copies asked for, a second"
)

const (
	maxReading   = 64 << 20 // bytes; a one-off request in one piece counts with its maximum size
	chunkReading = chunk.MaxPlaintext
	leastReading = 4 << 10 // bytes that a request counts at least
	maxEvidence  = 64      // open requests that wait; one at a time is served
	pullsEach    = 500     // stored copies requested per second for one address; bursts of twice that
	maxSender    = 16      // characters of a sender's name
)

// bodyWait is the time limit for reading an open request, a one-off request in one piece, or
// the head of a one-off request in chunks.
const bodyWait = 10 * time.Second

// intake contains the quotas of a server.
type intake struct {
	reading  *limit.Shares
	oneOffs  *limit.Shares
	evidence *limit.Turns
	pulls    *limit.Buckets
	now      func() time.Time // clock of pulls
}

func newIntake(l channel.Limits) *intake {
	return &intake{
		reading: limit.NewShares(quotaReading, maxReading), oneOffs: limit.NewShares(quotaOneOffs, l.OneOffs),
		evidence: limit.NewTurns(quotaEvidence, 1, maxEvidence), pulls: limit.NewBuckets(pullsEach), now: time.Now,
	}
}

// readWhole reads at most limit+1 bytes of a request's content, so that the caller detects
// content that is too long. The client must send all of it within bodyWait.
func readWhole(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyWait)) // a server without deadlines has its own limit
	b, err := io.ReadAll(io.LimitReader(r.Body, int64(limit)+1))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{})
	}
	return b, err
}

// waitForEvidence waits until the TEE is free: it makes evidence for one request at a time. The
// clients of a gateway take turns, as far as the gateway distinguishes them. The caller calls
// done after making the evidence.
func (i *intake) waitForEvidence(r *http.Request) (done func(), err error) {
	sender := r.Header.Get(wire.FieldSender)
	if err := i.evidence.Acquire(r.Context(), limit.AddressOf(r.RemoteAddr), sender[:min(len(sender), maxSender)]); err != nil {
		return nil, err
	}
	if err := context.Cause(r.Context()); err != nil { // the client no longer waits for the evidence
		i.evidence.Release()
		return nil, err
	}
	return i.evidence.Release, nil
}

// reserved is the share of a quota that one request uses.
type reserved struct {
	shares *limit.Shares
	from   netip.Addr
	n      int // 0: the request uses nothing
}

// takeShare reserves n more. It refuses if the quota is used up.
func (t *reserved) takeShare(n int) error {
	if err := t.shares.Acquire(t.from, n); err != nil {
		return err
	}
	t.n += n
	return nil
}

// giveBack releases the whole share.
func (t *reserved) giveBack() {
	if t.n > 0 {
		t.shares.Release(t.from, t.n)
		t.n = 0
	}
}

// ohttpReading returns the number of bytes of a one-off request that the server may buffer.
func ohttpReading(f ohttp.Form, r *http.Request) int {
	most := ohttp.MaxWhole + chunk.MaxPlaintext/64 // with room for the bytes before the ciphertext
	if f.Chunked {
		most = chunkReading
	}
	if r.ContentLength >= 0 && r.ContentLength < int64(most) {
		most = int(r.ContentLength)
	}
	return max(most, leastReading)
}
