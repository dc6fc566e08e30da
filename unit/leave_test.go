package unit

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestLeaves: a unit that ends in good order gives its place back, once, to the first authority
// that answers, by the signature of its own key.
func TestLeaves(t *testing.T) {
	w := newWorld(t, "1h")
	f, dead := w.authority(w.keys), w.authority(w.keys)
	dead.set(func(f *fake) { f.faults.serve = unavailable{} })
	u := w.start("scoring", f, dead)
	u.peers[0], u.peers[1] = u.peers[1], u.peers[0]
	u.Close()
	u.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.left) != 1 {
		t.Fatalf("got %d leave requests, want 1", len(f.left))
	}
	l := f.left[0]
	root := w.Policy().Document().Authority.Root
	digest := sha256.Sum256(api.LeaveMessage(u.ID(), l.Time, root))
	if l.Unit != u.ID() || !ecdsa.VerifyASN1(&u.signing.PublicKey, digest[:], l.Signature) || time.Since(l.Time).Abs() > time.Minute {
		t.Errorf("got %+v, want the unit's own word", l)
	}
}

// TestLeavesNobody: an authority that is away does not keep a unit from ending.
func TestLeavesNobody(t *testing.T) {
	w := newWorld(t, "1h")
	f := w.authority(w.keys)
	u := w.start("scoring", f)
	stalled := make(chan struct{})
	f.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stalled })
	began := time.Now()
	u.Close()
	close(stalled)
	if took := time.Since(began); took > 10*leaveTime {
		t.Errorf("closing took %v, want about %v", took, leaveTime)
	}
}

// TestWaitsForAPlace: a full task is no reason for a unit to give up.
func TestWaitsForAPlace(t *testing.T) {
	if final(wire.Refuse(wire.NoPlace, "units", "", "")) {
		t.Error("a unit that finds no place gives up")
	}
}
