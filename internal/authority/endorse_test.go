package authority

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// vendorDesk is an endorser that says what it was asked about.
type vendorDesk struct {
	mu    sync.Mutex
	asked []attest.Platform
	err   error
}

func (d *vendorDesk) Endorse(_ context.Context, e attest.Evidence) (attest.Endorsements, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, e.Platform)
	return attest.Endorsements{"note": []byte("of the vendor")}, d.err
}

// TestEndorser: the vendor is asked about evidence of platforms that policy names,
// the authority's own included, which clients get with what he said. What he
// cannot say is refused with his reason, and nothing is issued.
func TestEndorser(t *testing.T) {
	w := newWorld(t)
	desk := new(vendorDesk)
	config := w.config("authority")
	config.Endorser = desk
	a, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if len(desk.asked) == 0 {
		t.Error("not asked about the authority itself")
	}
	var own attest.Evidence
	answer, err := a.trust(t.Context(), url.Values{"task": {"scoring"}, "nonce": {strings.Repeat("0", 64)}})
	if err == nil {
		err = own.UnmarshalJSON(answer.Evidence)
	}
	if err != nil || string(own.Endorsed["note"]) != "of the vendor" {
		t.Errorf("a client gets %q, %v, want what the vendor said", own.Endorsed["note"], err)
	}
	if _, err := w.scoring().enrol(direct{a}); err != nil {
		t.Error(err)
	}
	desk.asked, desk.err = nil, wire.Refuse(wire.Unavailable, "vendor", "nothing", "an answer")
	_, err = w.scoring().enrol(direct{a})
	wantReason(t, err, wire.Unavailable)
	_, err = a.trust(t.Context(), url.Values{"task": {"scoring"}, "nonce": {strings.Repeat("0", 64)}})
	wantReason(t, err, wire.Unavailable)
	if len(desk.asked) != 2 || issued(t, a) != 1 {
		t.Errorf("asked %d times, issued %d, want 2 and 1", len(desk.asked), issued(t, a))
	}
	desk.asked = nil
	stranger := attest.Evidence{Platform: attest.SNP, Raw: []byte{1}}
	if got, err := a.endorse(t.Context(), stranger, a.current.Load().approved); err != nil || got.Endorsed != nil || desk.asked != nil {
		t.Errorf("evidence that policy does not name: got %v, %v, asked %v", got.Endorsed, err, desk.asked)
	}
}
