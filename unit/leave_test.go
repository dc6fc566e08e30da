package unit

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// TestLeaves: a unit that ends properly releases its place, once, at the first authority
// that responds, with a signature by its own key.
func TestLeaves(t *testing.T) {
	w := unittest.New(t, "1h")
	f, dead := w.Authority(w.AuthorityKeys), w.Authority(w.AuthorityKeys)
	dead.Set(func(f *unittest.Authority) { f.Faults.Serve = unittest.Unavailable{} })
	u := started(w, "scoring", f, dead)
	u.peers[0], u.peers[1] = u.peers[1], u.peers[0]
	u.Close()
	u.Close()
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if len(f.Left) != 1 {
		t.Fatalf("got %d leave requests, want 1", len(f.Left))
	}
	l := f.Left[0]
	root := w.Policy().Document().Authority.Root
	digest := sha256.Sum256(api.LeaveMessage(u.ID(), l.Time, root))
	if l.Unit != u.ID() || !ecdsa.VerifyASN1(&u.signing.PublicKey, digest[:], l.Signature) || time.Since(l.Time).Abs() > time.Minute {
		t.Errorf("got %+v, want the unit's own word", l)
	}
}

// TestLeavesNobody: an unresponsive authority does not keep a unit from ending.
func TestLeavesNobody(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	u := started(w, "scoring", f)
	stalled := make(chan struct{})
	f.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stalled })
	began := time.Now()
	u.Close()
	close(stalled)
	if took := time.Since(began); took > 10*leaveTime {
		t.Errorf("closing took %v, want about %v", took, leaveTime)
	}
}

// TestWaitsForAPlace: a unit does not give up because its task has no place left.
func TestWaitsForAPlace(t *testing.T) {
	if isFinal(wire.Refuse(wire.NoPlace, "units", "", "")) {
		t.Error("a unit that finds no place gives up")
	}
}
