package bench

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	allPlatforms "github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
)

// platforms is the policy's tables of the hardware that the benchmarks play.
const platforms = `[platform.snp]
roots = ["AMD"]
chips = "any"
id_keys = ["sha384:NOKEY"]
[platform.snp.generation.Milan]
committed = { bootloader = 3, tee = 0, snp = 22, microcode = 115 }
[platform.tdx]
roots = ["INTEL"]
chips = "any"
`

const tasks = `
[task.own]
key_mode = "unit"
lifetime = "1h"
names = ["own.clinic.example"]
[task.own.release."1"]
reference = [ REFERENCE-OWN ]
[task.scoring]
key_mode = "shared"
lifetime = "1h"
names = ["scoring.clinic.example"]
[task.scoring.release."1"]
reference = [ REFERENCE-SCORING ]
`

// verifier supports the platforms of the policy.
func verifier() *attest.Verifier {
	return attest.NewVerifier(snp.Platform().Appraiser(), dcap.TDXPlatform().Appraiser())
}

// vendors plays the hardware vendors. Every unit runs on one chip of each vendor.
type vendors struct {
	amd   *attesttest.SNPVendor
	chip  *attesttest.SNPChip
	intel *attesttest.DCAPVendor
	tdx   *attesttest.DCAPChip
}

func newVendors(now time.Time) *vendors {
	v := &vendors{amd: attesttest.NewSNPVendor("Milan", now), intel: attesttest.NewDCAPVendor(now)}
	v.chip = v.amd.Chip(attest.SNPTCB{Bootloader: 3, SNP: 22, Microcode: 115})
	v.tdx = v.intel.Chip(v.intel.TCB)
	return v
}

func (v *vendors) device(p attest.Platform, program string) attest.Attester {
	if p == attest.TDX {
		return v.tdx.Attester(attesttest.MeasureTDX(program))
	}
	return v.chip.Attester(attesttest.MeasureSNP(program))
}

// collateral returns the real cache in front of the vendors' services.
func (v *vendors) collateral(t testing.TB) *collateral.Collateral {
	mux := http.NewServeMux()
	mux.Handle("/vcek/", v.chip.Service())
	mux.Handle("/", v.intel.Service())
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return collateral.New(collateral.Config{Documents: allPlatforms.Supported().Documents, Sources: map[string]string{"amd": server.URL, "intel": server.URL, "intel-root": server.URL}})
}

// reference returns a measurement in policy syntax.
func reference(m attest.Measurement) string {
	fields := []string{fmt.Sprintf("platform = %q", m.Platform)}
	for _, r := range m.Registers {
		value := hex.EncodeToString(r.Value)
		if r.Name != "host-data" && r.Name != "mrconfigid" {
			value = "sha384:" + value
		}
		fields = append(fields, fmt.Sprintf("%s = %q", r.Name, value))
	}
	return "{ " + strings.Join(fields, ", ") + " }"
}

// references returns the reference values of a program on both platforms.
func references(program string) string {
	return reference(attesttest.MeasureSNP(program)) + ", " + reference(attesttest.MeasureTDX(program))
}

// founded is an authority that has not started, with a real store on this disk.
type founded struct {
	vendors *vendors
	dsn     string
	config  authority.Config
	genesis wire.Digest
	root    wire.Digest
}

// found creates an authority on SNP.
func found(t testing.TB, v *vendors) founded {
	t.Helper()
	w := testworld.New(t)
	f := founded{vendors: v, dsn: "sqlite:" + filepath.Join(t.TempDir(), "a.db")}
	db := testworld.Must(store.Create(t.Context(), f.dsn))
	defer db.Close()
	tee := v.device(attest.SNP, "authority")
	// It seals for the measurement; sealing of real hardware is not played.
	sealer := attesttest.NewVendor().Chip().Attester(attesttest.MeasureSNP("authority"))
	draft := testworld.Must(policydraft.Parse([]byte(w.PolicyText("", tasks, "development  = true\n", "",
		"[platform.soft]\nroots = [\"VENDOR\"]\n", platforms, `{ platform = "soft", program = "authority" }`, reference(attesttest.MeasureSNP("authority")),
		"AMD", v.amd.Root().String(), "INTEL", v.intel.Root().String(), "NOKEY", strings.Repeat("0", 96),
		"REFERENCE-OWN", references("own"), "REFERENCE-SCORING", references("scoring")))))
	f.root = testworld.Must(sealed.CreateRoot(t.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: sealer, Draft: draft})).Root
	genesis := w.SignPolicy(string(testworld.Must(draft.WithRoot(f.root))))
	f.genesis = wire.Sum(genesis.Policy)
	f.config = authority.Config{
		Attester: tee, Sealer: sealer, Verifier: verifier(), Clock: trustedclock.System(),
		Endorser: func(collateral.Cache) authority.Endorser { return v.collateral(t) },
		Log:      slog.New(slog.DiscardHandler),
		Genesis:  &genesis,
		Limits:   admission.Limits{PerAddress: 1 << 20, Total: 1 << 20},
	}
	return f
}

// start starts the authority, with real TLS on loopback.
func (f founded) start(t testing.TB) (e estate, stop func()) {
	t.Helper()
	db := testworld.Must(store.Open(t.Context(), f.dsn))
	config := f.config
	config.Store = db
	a := testworld.Must(authority.Open(t.Context(), config))
	l := listener()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Serve(ctx, l) }()
	client := newAuthority("https://" + l.Addr().String())
	return estate{"https://" + l.Addr().String(), client, f.genesis, f.root, f.vendors.device}, func() {
		client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error("authority ended:", err)
		}
		db.Close()
	}
}

// newAuthority returns a client that verifies no TLS certificate. The cost to the authority
// is the same, and nothing that the client receives is trusted.
func newAuthority(url string) *api.Authority {
	return testworld.Must(api.NewAuthority(url, &tls.Config{InsecureSkipVerify: true}))
}
