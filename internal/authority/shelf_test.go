package authority

import (
	"encoding/json"
	"math/big"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestDocumentsAreAuthenticated: a cached document is used only as this authority wrote it, under
// its name and with its time of fetching. Any other content of the row is reported in the log and
// ignored.
func TestDocumentsAreAuthenticated(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	kept := documentCache{a}
	list := collateral.Document{Content: []byte("list"), Chain: []byte("chain"), Fetched: noon, Expires: noon.Add(time.Hour)}
	want := list
	want.Expires = time.Time{} // the document has it
	row := func() store.Row { return testworld.Must(a.store.Collateral(t.Context(), "snp/Milan/crl.der")) }
	put := func(r store.Row) {
		t.Helper()
		if err := a.store.PutCollateral(t.Context(), store.Collateral{Row: r, Kept: noon}); err != nil {
			t.Fatal(err)
		}
	}
	kept.Store(t.Context(), "snp/Milan/crl.der", list)
	good := row()
	if got := kept.Load(t.Context(), "snp/Milan/crl.der"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := (documentCache{w.open()}).Load(t.Context(), "snp/Milan/crl.der"); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart: got %+v, want %+v", got, want)
	}
	later := list
	later.Fetched = noon.Add(20 * 24 * time.Hour)
	for name, change := range map[string]func(store.Row) store.Row{
		"another time": func(r store.Row) store.Row { r.Content = testworld.Must(json.Marshal(later)); return r },
		"a bit": func(r store.Row) store.Row {
			r.Content = []byte(strings.Replace(string(r.Content), "2026", "2027", 1))
			return r
		},
		"no tag":             func(r store.Row) store.Row { r.MAC = []byte{}; return r },
		"the tag of a lease": func(r store.Row) store.Row { r.MAC = a.records.ComputeMAC(records.TableLease, r); return r },
		"another name":       func(r store.Row) store.Row { r.Key = []byte("snp/Genoa/crl.der"); return r },
		"no JSON":            func(r store.Row) store.Row { r.Content = []byte("{"); return r },
	} {
		t.Run(name, func(t *testing.T) {
			changed := change(good)
			put(changed)
			if got := kept.Load(t.Context(), string(changed.Key)); !reflect.DeepEqual(got, collateral.Document{}) {
				t.Errorf("got %+v, want none", got)
			}
			w.logMu.Lock()
			defer w.logMu.Unlock()
			if !strings.Contains(w.log.String(), "of collateral") {
				t.Errorf("the log does not name the row: %s", w.log)
			}
		})
	}
	put(good)
	if got := kept.Load(t.Context(), "snp/Milan/crl.der"); !reflect.DeepEqual(got, want) {
		t.Errorf("as it was: got %+v, want %+v", got, want)
	}
}

// TestForgedTimeFreezesNoRevocation: the operator of the database forges the fetching time of an
// old revocation list, so that it looks fresh. The authority ignores the forged row, fetches the
// list from the vendor, and refuses the revoked chip.
func TestForgedTimeFreezesNoRevocation(t *testing.T) {
	if os.Getenv(onServer) != "" {
		t.Skip("its statement is SQLite's")
	}
	w := newWorld(t)
	a := w.open()
	vendor := attesttest.NewSNPVendor("Milan", noon)
	chip := vendor.Chip(attest.SNPTCB{Bootloader: 4, TEE: 1, SNP: 24, Microcode: 219})
	service := httptest.NewServer(chip.Service())
	t.Cleanup(service.Close)
	at := noon
	documents := func() *collateral.Collateral {
		return collateral.New(collateral.Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"amd": service.URL}, Cache: documentCache{a}, Clock: func() time.Time { return at }})
	}
	evidence := testworld.Must(chip.Attester(attesttest.MeasureSNP("guest")).Attest(t.Context(), attest.ReportData{1}))
	rules := vendor.Rules()
	rules.CheckedWithin = 72 * time.Hour
	appraise := func(c *collateral.Collateral) error {
		t.Helper()
		endorsed, err := c.Endorse(t.Context(), evidence)
		if err != nil {
			t.Fatal(err)
		}
		_, err = attest.NewVerifier(snp.Platform().Appraiser()).Appraise(attest.Question{
			Evidence: evidence, Endorsements: endorsed, ReportData: attest.ReportData{1}, At: at, Rules: map[attest.Platform]attest.Rules{attest.SNP: rules},
		})
		return err
	}
	if err := appraise(documents()); err != nil {
		t.Fatal(err)
	}
	at = noon.Add(24 * time.Hour)
	vendor.Revoke(big.NewInt(2)) // the CA of chips
	if err := appraise(documents()); err != nil {
		t.Errorf("with the list of yesterday, as it was kept: %v", err)
	}
	at = noon.Add(10 * 24 * time.Hour)
	old, forged := noon.UTC().Format(time.RFC3339), at.Add(-time.Minute).UTC().Format(time.RFC3339)
	exec(t, w.dsn, `UPDATE collateral SET content = CAST(replace(CAST(content AS TEXT), '`+old+`', '`+forged+`') AS BLOB)`)
	testworld.Refused(t, appraise(documents()), wire.Revoked)
}
