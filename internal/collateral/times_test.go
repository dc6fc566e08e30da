package collateral

import (
	"encoding/json"
	"math/big"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTimesOfKeptDocuments: a kept document ends when it says so itself, whatever
// stands beside it, and one that was fetched in the future says nothing of when it
// was: it is fetched anew, and while that cannot be it is worth what is signed.
func TestTimesOfKeptDocuments(t *testing.T) {
	s := milan(t)
	config := s.config(&s.at)
	kept := &shelf{documents: map[string]Document{}}
	config.Cache = kept
	s.c = New(config)
	want(t, s.appraise(t), "")
	s.vendor.Revoke(big.NewInt(2)) // the ASK; the list at hand does not have it
	s.at = noon.Add(10 * daily)
	for name, d := range kept.documents {
		d.Fetched, d.Expires = s.at.AddDate(1, 0, 0), s.at.AddDate(5, 0, 0)
		kept.documents[name] = d
	}
	s.answer(status(503))
	s.c = New(config)
	want(t, s.appraise(t), "")
	endorsed, err := s.c.Endorse(t.Context(), s.e)
	if err != nil || endorsed[attest.RoleChecked] != nil {
		t.Errorf("got checked %x, %v, want nothing said", endorsed[attest.RoleChecked], err)
	}
	rules := s.vendor.Rules()
	rules.CheckedWithin = 72 * time.Hour
	q := attest.Question{Evidence: s.e, Endorsements: endorsed, ReportData: attest.ReportData{1}, At: s.at, Rules: map[attest.Platform]attest.Rules{attest.SNP: rules}}
	_, err = attest.NewVerifier(snp.Platform().Appraiser()).Appraise(q)
	want(t, err, wire.Expired)
	s.answer(nil)
	s.at = s.at.Add(vendorBackoff.Max)
	want(t, s.appraise(t), wire.Revoked)
	s.at = s.vendor.ListUntil.Add(time.Second) // of the list as it is signed
	s.answer(status(503))
	for name, d := range kept.documents {
		d.Expires = s.at.AddDate(5, 0, 0)
		kept.documents[name] = d
	}
	s.c = New(config)
	if got, current := s.c.cached(t.Context(), s.c.items(s.e)[1]); current || !got.Expires.Before(s.at) {
		t.Errorf("got a list until %v, current %v, want its own end", got.Expires, current)
	}
}

// TestClockOfTheHost: a document that was fetched while the clock was ahead is
// fetched anew once it is right, and not first when it seems to be due.
func TestClockOfTheHost(t *testing.T) {
	s := milan(t)
	s.at = noon.Add(20 * daily)
	if _, err := s.c.Endorse(t.Context(), s.e); err != nil {
		t.Fatal(err)
	}
	s.at = noon
	s.count()
	due := s.c.dueItems()
	if len(due) != 3 {
		t.Errorf("%d documents are due, want all 3", len(due))
	}
	if _, err := s.c.Endorse(t.Context(), s.e); err != nil || s.count() != 3 {
		t.Errorf("got %v, want all documents fetched anew", err)
	}
	if due := s.c.dueItems(); len(due) != 0 {
		t.Errorf("%d documents are due, want none", len(due))
	}
}

// TestFilesOfTheFuture are refused, and named, until that time has come.
func TestFilesOfTheFuture(t *testing.T) {
	s := milan(t)
	endorsed := s.chip.Endorsements()
	files := fstest.MapFS{}
	for _, it := range s.c.items(s.e) {
		files[it.Name] = &fstest.MapFile{Data: endorsed[it.Role], ModTime: noon.Add(time.Minute)}
	}
	at := noon
	s.c = New(Config{Documents: platforms.Supported().Documents, Mirror: files, Clock: func() time.Time { return at }})
	want(t, s.appraise(t), wire.Unavailable)
	want(t, s.fault(t, "pem"), wire.ClockSkew)
	at = noon.Add(time.Minute)
	want(t, s.appraise(t), "")
	files["snp/Milan/vcek_chain.pem"].Data = make([]byte, maxDocument+1)
	s.c = New(Config{Documents: platforms.Supported().Documents, Mirror: files, Clock: func() time.Time { return at }})
	want(t, s.appraise(t), wire.Unavailable)
	want(t, s.fault(t, "pem"), wire.TooLarge)
}

// FuzzKept reads a row: what can be read of it ends when its document says, reads
// back the same, and is never current before it was fetched.
func FuzzKept(f *testing.F) {
	s := milan(f)
	for _, it := range s.c.items(s.e) {
		d, err := s.c.fetch(f.Context(), it, nil)
		if err != nil {
			f.Fatal(err)
		}
		row, err := json.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(row, uint8(it.Kind))
	}
	intel := attesttest.NewDCAPVendor(noon)
	f.Add([]byte(`{"Content":"e30=","Fetched":"9999-12-31T23:59:59Z"}`), uint8(attest.StatementDocument))
	info, err := json.Marshal(Document{Content: intel.Endorsements(attest.TDX)["tcb_info"], Chain: intel.Endorsements(attest.TDX)["tcb_info_chain"], Fetched: noon})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(info, uint8(attest.StatementDocument))
	statement := platforms.Supported().Documents(evidence(f, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td"))))[0]
	f.Fuzz(func(t *testing.T, row []byte, of uint8) {
		var d Document
		if json.Unmarshal(row, &d) != nil {
			return
		}
		it := item{Document: statement}
		it.Name, it.Kind = "name", attest.DocumentKind(of%3)
		c := New(Config{Clock: func() time.Time { return noon }, Cache: &shelf{documents: map[string]Document{"name": d}}})
		got, current := c.cached(t.Context(), it)
		end, err := it.expiry(d)
		if len(got.Content) > 0 && (err != nil || !got.Expires.Equal(end)) {
			t.Fatalf("ends %v, want what the document says: %v, %v", got.Expires, end, err)
		}
		if current && (d.Fetched.After(noon) || !end.After(noon) || got.digest != wire.Sum(d.Content)) {
			t.Fatalf("%+v is current at %v", got, noon)
		}
	})
}
