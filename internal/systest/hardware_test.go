package systest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/attest/nvidia"
	allPlatforms "github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// vendors plays all hardware vendors with their services on the local network, and a clock
// that tests set.
type vendors struct {
	group string // tables of a group in the first policy
	amd   *attesttest.SNPVendor
	intel *attesttest.DCAPVendor
	aws   *attesttest.NitroVendor
	dev   *attesttest.Vendor
	chip  *attesttest.SNPChip
	cpu   *attesttest.DCAPChip
	host  *testing.T // this and the next two are set where a test uses a TPM
	maker *attesttest.TPMMaker
	tpm   *attesttest.TPM

	paravisor *snp.AzureAttester // of the TPM's machine, where a test uses one

	nvidia *attesttest.NVIDIAVendor // this and the next are set where a test uses a GPU
	gpu    *attesttest.NVIDIAGPU

	service string // URL of AMD's and Intel's collateral services

	mu     sync.Mutex
	now    time.Time
	passed time.Duration
	down   bool
	asked  int // number of requests to the services of AMD and Intel
}

const milanRow = "[platform.snp.generation.Milan]\ncommitted = { bootloader = 3, tee = 0, snp = 22, microcode = 115 }\n"

const azureMilanRow = "[platform.azure-snp.generation.Milan]\ncommitted = { bootloader = 3, tee = 0, snp = 22, microcode = 115 }\n"

var platformRules = map[attest.Platform]string{
	attest.Soft: "[platform.soft]\nroots = [%q]\n",
	attest.SNP: "[platform.snp]\nroots = [%q]\nchips = \"any\"\nid_keys = [\"sha384:" + zeros(96) + "\"]\n" +
		"[platform.snp.generation.Genoa]\ncommitted = { bootloader = 9, tee = 0, snp = 21, microcode = 72 }\n" + milanRow,
	attest.AzureSNP: "[platform.azure-snp]\nroots = [%q]\nchips = \"any\"\nid_keys = [\"sha384:" + zeros(96) + "\"]\n" +
		"[platform.azure-snp.generation.Genoa]\ncommitted = { bootloader = 9, tee = 0, snp = 21, microcode = 72 }\n" + azureMilanRow,
	attest.TDX:   "[platform.tdx]\nroots = [%q]\nchips = \"any\"\n",
	attest.SGX:   "[platform.sgx]\nroots = [%q]\nchips = \"any\"\n",
	attest.TPM:   "[platform.tpm]\nroots = [%q]\n",
	attest.Nitro: "[platform.nitro]\nroots = [%q]\nmax_age = \"5m\"\n",
}

func zeros(n int) string { return strings.Repeat("0", n) }

func newVendors(t *testing.T) *vendors {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	v := &vendors{
		amd: attesttest.NewSNPVendor("Milan", now), intel: attesttest.NewDCAPVendor(now), aws: attesttest.NewNitroVendor(now),
		dev: attesttest.NewVendor(), now: now,
	}
	v.chip = v.amd.Chip(attest.SNPTCB{Bootloader: 3, SNP: 22, Microcode: 115})
	v.cpu = v.intel.Chip(v.intel.TCB)
	mux := http.NewServeMux()
	mux.Handle("/vcek/", v.chip.Service())
	mux.HandleFunc("/crl/", func(w http.ResponseWriter, r *http.Request) { v.gpu.Service().ServeHTTP(w, r) })
	mux.Handle("/", v.intel.Service())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.asked++
		if v.down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	v.service = server.URL
	return v
}

func (v *vendors) read() (time.Time, time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.now, v.passed
}

func (v *vendors) wall() time.Time { now, _ := v.read(); return now }

func (v *vendors) requests() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

func (v *vendors) pass(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now, v.passed = v.now.Add(d), v.passed+d
}

func (v *vendors) root(p attest.Platform) attest.Digest {
	switch p {
	case attest.TPM:
		return v.maker.Root(v.host)
	case attest.SNP, attest.AzureSNP:
		return v.amd.Root()
	case attest.Nitro:
		return v.aws.Root()
	case attest.Soft:
		return v.dev.Root()
	}
	return v.intel.Root()
}

// device returns a TEE of a platform that runs a program, and the program's reference
// value.
func (v *vendors) device(p attest.Platform, program string) (attest.Attester, attest.Measurement) {
	var m attest.Measurement
	switch p {
	case attest.TPM:
		return v.launch(program)
	case attest.AzureSNP:
		return v.onAzure()
	case attest.SNP:
		m = attesttest.MeasureSNP(program)
		return v.chip.Attester(m), m
	case attest.TDX:
		m = attesttest.MeasureTDX(program)
		return v.cpu.Attester(m), m
	case attest.SGX:
		m = attesttest.MeasureSGX(program)
		return v.cpu.Attester(m), m
	case attest.Nitro:
		m = attesttest.MeasureNitro(program)
		d := v.aws.Attester(m)
		d.Now = v.wall
		return d, m
	}
	m = attesttest.Measure(program)
	return v.dev.Chip().Attester(m), m
}

// verifier supports every platform, so that only the policy refuses any.
func verifier() *attest.Verifier {
	return attest.NewVerifier(soft.Platform().Appraiser(), snp.Platform().Appraiser(), snp.AzurePlatform().Appraiser(), dcap.TDXPlatform().Appraiser(), dcap.SGXPlatform().Appraiser(), nitro.Platform().Appraiser(), tpm.Platform().Appraiser(), nvidia.Platform().Appraiser())
}

// reference returns a measurement in policy syntax.
func reference(m attest.Measurement) string {
	fields := []string{fmt.Sprintf("platform = %q", m.Platform)}
	if m.Platform == attest.TPM {
		return tpmReference(m)
	}
	var boot []string
	for _, r := range m.Registers {
		text := hex.EncodeToString(r.Value)
		if number, is := strings.CutPrefix(r.Name, "pcr"); is && m.Platform == attest.AzureSNP {
			boot = append(boot, fmt.Sprintf("%s = \"sha256:%s\"", number, text))
			continue
		}
		switch r.Name {
		case "agent", "args":
			continue
		case "program", "mrenclave", "mrsigner":
			text = "sha256:" + text
		case "host-data", "mrconfigid", "configid":
		case "isvprodid":
			fields = append(fields, fmt.Sprintf("isvprodid = %d", int(r.Value[0])<<8|int(r.Value[1])))
			continue
		default:
			text = "sha384:" + text
		}
		fields = append(fields, fmt.Sprintf("%s = %q", r.Name, text))
	}
	if boot != nil {
		fields = append(fields, "boot = { "+strings.Join(boot, ", ")+" }")
	}
	return "{ " + strings.Join(fields, ", ") + " }"
}

// estate is an authority on one platform and a task on several platforms. The embedded
// Cluster provides owners, history and address, but no authority.
type estate struct {
	*Cluster
	*vendors
	collateral *collateral.Collateral
	db         *store.Store
}

// settle starts an estate: the authority runs on the first platform, and the policy allows
// the task "scoring" on all platforms.
func settle(t *testing.T, v *vendors, platforms ...attest.Platform) *estate {
	t.Helper()
	c := &Cluster{t: t, owner: testworld.NewKey(), Log: slog.New(slog.DiscardHandler), dsn: "sqlite:" + filepath.Join(t.TempDir(), "a.db"), addr: loopback.FreeAddress(t)}
	e := &estate{Cluster: c, vendors: v, collateral: collateral.New(collateral.Config{
		Documents: allPlatforms.Supported().Documents, Clock: v.wall,
		Sources: map[string]string{"amd": v.service, "intel": v.service, "intel-root": v.service, "nvidia": v.service},
	})}
	tee, own := v.device(platforms[0], "authority")
	sealer, ok := tee.(attest.Sealer)
	if !ok {
		sealer = v.dev.Chip().Attester(own) // seals for the measurement; sealing of that hardware is not played
	}
	db, err := store.Create(t.Context(), c.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	e.db = db
	first, err := policyfile.CopyAuthority([]byte(e.policy(own, platforms...) + v.group))
	if err != nil {
		t.Fatal(err)
	}
	draft := draftOf(t, string(first))
	made, err := sealed.CreateRoot(t.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: sealer, Draft: draft, Endorser: e.collateral})
	if err != nil {
		t.Fatal(err)
	}
	text := filled(t, draft, made.Root)
	c.Root, c.Steps, c.Genesis = made.Root, []policy.Step{c.SignPolicy(text)}, wire.Sum([]byte(text))
	e.open(c, tee, sealer)
	return e
}

// open starts an authority over the estate's store, at the address of a cluster.
func (e *estate) open(c *Cluster, tee attest.Attester, sealer attest.Sealer) {
	t := e.t
	t.Helper()
	a, err := authority.Open(t.Context(), authority.Config{
		Store: e.db, Attester: tee, Sealer: sealer, Verifier: verifier(), Clock: e.read, Log: c.Log, Genesis: &c.Steps[0],
		Endorser: func(collateral.Cache) authority.Endorser { return e.collateral }, Limits: admission.Limits{PerAddress: 10_000, Total: 10_000},
	})
	if err != nil {
		t.Fatalf("opening the authority: %v", err)
	}
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("authority ended: %v", err)
		}
	})
}

// policy returns the draft of the first policy for an authority with the given measurement.
func (e *estate) policy(own attest.Measurement, platforms ...attest.Platform) string {
	v := e.vendors
	text := fmt.Sprintf("schema = %q\ntrust_domain = %q\nsequence = 1\nprevious = \"\"\ncreated = %s\ndevelopment = %t\n",
		policyfile.Schema, Domain, v.wall().UTC().Format(time.RFC3339), platforms[0] == attest.Soft)
	text += fmt.Sprintf("[owners]\nquorum = 1\napprove_within = \"1h\"\ndelay = \"1h\"\nkeys = [ { name = \"ana\", ssh = %q } ]\n",
		e.owner.AuthorizedKey())
	var references []string
	for _, p := range platforms {
		text += fmt.Sprintf(platformRules[p], v.root(p))
		_, m := v.device(p, "scoring 1")
		references = append(references, reference(m))
	}
	if v.gpu != nil {
		text += v.gpuRules()
	}
	text += fmt.Sprintf("[authority]\nroot = \"\"\nmachines = \"any\"\nreference = [ %s ]\n", reference(own))
	text += fmt.Sprintf("[task.scoring]\nkey_mode = \"shared\"\nlifetime = \"1h\"\nnames = [%q]\n[task.scoring.release.\"1\"]\nreference = [ %s ]\n",
		ServerName("scoring"), strings.Join(references, ", "))
	if v.gpu != nil {
		text += "devices = { nvidia-gpu = 1 }\n"
	}
	return text
}

// enrol starts a unit that runs a program on a platform, or returns the reason of its
// refusal.
func (e *estate) enrol(p attest.Platform, program string) (*unit.Unit, error) {
	device, _ := e.vendors.device(p, program)
	if e.vendors.gpu != nil {
		device = attest.WithDevices(device, e.vendors.gpu)
	}
	config := e.UnitConfig("scoring", program)
	config.Attester, config.Clock = device, e.read
	return start(e.t, config)
}

// start starts a unit, which ends with the test.
func start(t testing.TB, config unit.Config) (*unit.Unit, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	u, err := unit.Start(ctx, config)
	if err == nil {
		t.Cleanup(u.Close)
	}
	return u, err
}

// serve serves a unit and returns its address.
func serve(t *testing.T, u *unit.Unit, body string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx, l, hello(body)) }()
	t.Cleanup(func() { cancel(); <-done })
	return l.Addr().String()
}

// trust fetches trust for the estate's task.
func (e *estate) trust() *client.Trust {
	e.t.Helper()
	pins := e.TrustConfig("scoring")
	pins.Verifier, pins.Clock = verifier(), e.wall
	trust, err := client.FetchTrust(e.t.Context(), pins)
	if err != nil {
		e.t.Fatalf("trusting: %v", err)
	}
	return trust
}

// dial returns a client that trusts the estate's task, at one address.
func (e *estate) dial(address string) *client.Client {
	e.t.Helper()
	c, err := client.New(client.Config{Trust: e.trust(), Addresses: []string{address}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

var hardware = []attest.Platform{attest.SNP, attest.TDX, attest.SGX, attest.Nitro}

// TestHardware: an authority on each platform in turn issues to units on all platforms. All
// its inputs come from the devices and the vendors' services. Another program on the same
// hardware is refused.
func TestHardware(t *testing.T) {
	for i, first := range hardware {
		t.Run(string(first), func(t *testing.T) {
			platforms := append([]attest.Platform{first}, append(hardware[:i:i], hardware[i+1:]...)...)
			e := settle(t, newVendors(t), platforms...)
			for _, p := range platforms {
				u, err := e.enrol(p, "scoring 1")
				if err != nil {
					t.Fatalf("unit on %s: %v", p, err)
				}
				got, err := get(t, e.dial(serve(t, u, string(p))), "https://"+ServerName("scoring")+"/")
				if err != nil || got != string(p) {
					t.Errorf("got %q, %v, want %q", got, err, p)
				}
				_, err = e.enrol(p, "scoring 2")
				testworld.Refused(t, err, wire.NotMeasured)
			}
		})
	}
}

// TestDevelopmentApart: an authority on hardware refuses soft evidence, and a development
// authority refuses hardware evidence. A client of one root refuses what the other root
// certifies, although program, task and names agree.
func TestDevelopmentApart(t *testing.T) {
	v := newVendors(t)
	iron, dev := settle(t, v, attest.SNP, attest.Nitro), settle(t, v, attest.Soft)
	_, err := iron.enrol(attest.Soft, "scoring 1")
	testworld.Refused(t, err, wire.NoPlatform)
	for _, p := range hardware {
		_, err = dev.enrol(p, "scoring 1")
		testworld.Refused(t, err, wire.NoPlatform)
	}
	ironUnit, err := iron.enrol(attest.SNP, "scoring 1")
	if err != nil {
		t.Fatal(err)
	}
	devUnit, err := dev.enrol(attest.Soft, "scoring 1")
	if err != nil {
		t.Fatal(err)
	}
	addresses := map[*estate]string{iron: serve(t, ironUnit, "iron"), dev: serve(t, devUnit, "dev")}
	for _, mine := range []*estate{iron, dev} {
		for theirs, address := range addresses {
			_, err := get(t, mine.dial(address), "https://"+ServerName("scoring")+"/")
			plain := mine.handshake(address)
			if mine == theirs {
				if err != nil || plain != nil {
					t.Errorf("its own unit: %v, %v", err, plain)
				}
				continue
			}
			testworld.Refused(t, err, wire.NoPlatform)
			var unknown x509.UnknownAuthorityError
			if !errors.As(plain, &unknown) {
				t.Errorf("a TLS client with the roots of one and a leaf of the other: got %v, want an unknown authority", plain)
			}
		}
	}
}

// handshake makes a TLS handshake with an address, as any TLS client with the roots of the
// estate's task does.
func (e *estate) handshake(address string) error {
	e.t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.trust().RootPEM()) {
		e.t.Fatal("no roots")
	}
	conn, err := tls.Dial("tcp", address, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: ServerName("scoring"), Time: e.wall})
	if err == nil {
		conn.Close()
	}
	return err
}

// TestOwnersSwitches: each cut by the owners takes effect at once, although a loosening
// change would wait an hour. The platform's next enrolment is refused with the cut's
// reason; enrolment on other platforms continues.
func TestOwnersSwitches(t *testing.T) {
	v := newVendors(t)
	guests := map[attest.Platform]string{}
	for _, p := range hardware {
		_, m := v.device(p, "scoring 1")
		guests[p] = reference(m)
	}
	without := func(p attest.Platform) []string {
		return []string{fmt.Sprintf(platformRules[p], v.root(p)), "", ", " + guests[p], ""}
	}
	// in returns the edit that adds a line to a platform's table.
	in := func(p attest.Platform, line string) []string {
		table := fmt.Sprintf("[platform.%s]\n", p)
		return []string{table, table + line + "\n"}
	}
	list := func(key string, id []byte) string { return fmt.Sprintf("%s = [\"%x\"]", key, id) }
	for _, row := range []struct {
		platform attest.Platform
		name     string
		edits    []string
		want     wire.Reason
	}{
		{attest.SNP, "chip", in(attest.SNP, list("cut_chips", v.chip.ID())), wire.NoPlatform},
		{attest.SNP, "firmware", []string{"snp = 22", "snp = 23"}, wire.BadTCB},
		{attest.SNP, "generation", []string{milanRow, ""}, wire.NoPlatform},
		{attest.SNP, "platform", without(attest.SNP), wire.NoPlatform},
		{attest.TDX, "chip", in(attest.TDX, list("cut_chips", v.cpu.ID())), wire.NoPlatform},
		{attest.TDX, "levels", in(attest.TDX, "min_evaluation = 19"), wire.BadTCB},
		{attest.TDX, "model", in(attest.TDX, list("cut_models", v.cpu.Model())), wire.NoPlatform},
		{attest.TDX, "platform", without(attest.TDX), wire.NoPlatform},
		{attest.SGX, "chip", in(attest.SGX, list("cut_chips", v.cpu.ID())), wire.NoPlatform},
		{attest.SGX, "levels", in(attest.SGX, "min_evaluation = 19"), wire.BadTCB},
		{attest.SGX, "version", in(attest.SGX, "min_isvsvn = 9"), wire.BadTCB},
		{attest.SGX, "model", in(attest.SGX, list("cut_models", v.cpu.Model())), wire.NoPlatform},
		{attest.SGX, "platform", without(attest.SGX), wire.NoPlatform},
		{attest.Nitro, "platform", without(attest.Nitro), wire.NoPlatform},
	} {
		t.Run(fmt.Sprint(row.platform, " ", row.name), func(t *testing.T) {
			first, other := attest.Nitro, attest.SNP
			if row.platform == attest.Nitro {
				first = attest.TDX
			}
			if row.platform == attest.SNP {
				other = attest.TDX
			}
			e := settle(t, v, first, other, row.platform)
			if _, err := e.enrol(row.platform, "scoring 1"); err != nil {
				t.Fatal(err)
			}
			old, next := e.Steps[0], e.NextPolicy(row.edits...)
			wantCut(t, old, next)
			push(t, e.Cluster, next)
			_, err := e.enrol(row.platform, "scoring 1")
			testworld.Refused(t, err, row.want)
			if _, err := e.enrol(other, "scoring 1"); err != nil {
				t.Errorf("another platform: %v", err)
			}
		})
	}
}

// wantCut requires that `policy diff` shows at least one change, and only cuts.
func wantCut(t *testing.T, old, next policy.Step) {
	t.Helper()
	var docs [2]*policyfile.Document
	for i, step := range []policy.Step{old, next} {
		var err error
		if docs[i], err = policyfile.Parse(step.Policy); err != nil {
			t.Fatal(err)
		}
	}
	changes := policyfile.Compare(docs[0], docs[1])
	if len(changes) == 0 || policyfile.Loosens(docs[0], docs[1]) {
		t.Errorf("the diff says %v, want cuts", changes)
	}
}

// TestVendorDownForADay: while the vendor is down, issuing continues as long as the cached
// collateral is valid, then stops with its reason. It resumes when the vendor is back.
func TestVendorDownForADay(t *testing.T) {
	v := newVendors(t)
	v.amd.ListUntil = v.now.Add(30 * time.Hour)
	e := settle(t, v, attest.SNP)
	enrol := func(after time.Duration, want wire.Reason) {
		t.Helper()
		v.pass(after)
		_, err := e.enrol(attest.SNP, "scoring 1")
		if want != "" {
			testworld.Refused(t, err, want)
		} else if err != nil {
			t.Error(err)
		}
	}
	enrol(0, "")
	v.mu.Lock()
	v.down = true
	v.mu.Unlock()
	enrol(24*time.Hour, "")
	enrol(6*time.Hour+time.Second, wire.Expired)
	v.mu.Lock()
	v.down, v.amd.ListUntil = false, v.now.Add(30*time.Hour)
	v.mu.Unlock()
	enrol(10*time.Minute, "")
}

// TestCollateralStapled: evidence of the authority and of units reaches clients with the
// vendors' documents, and with the time at which the authority fetched them. Clients
// contact no vendor, see the age of the documents, and refuse the ages that the policy
// refuses, as the authority does.
func TestCollateralStapled(t *testing.T) {
	for name, p := range map[string]attest.Platform{"snp": attest.SNP, "tdx": attest.TDX, "sgx": attest.SGX, "snp with a GPU": attest.SNP} {
		t.Run(name, func(t *testing.T) {
			v, ruled := newVendors(t), []attest.Platform{p}
			if strings.HasSuffix(name, "GPU") {
				v, ruled = withGPU(t), append(ruled, attest.NvidiaGPU)
			}
			e := settle(t, v, p)
			var edits []string
			for _, p := range ruled {
				table := fmt.Sprintf("[platform.%s]\n", p)
				edits = append(edits, table, table+"checked_within = \"48h\"\n")
			}
			push(t, e.Cluster, e.NextPolicy(edits...))
			u, err := e.enrol(p, "scoring 1")
			if err != nil {
				t.Fatal(err)
			}
			address := serve(t, u, "fresh")
			e.vendors.mu.Lock()
			e.vendors.down = true
			e.vendors.mu.Unlock()
			trust := e.trust()
			had := e.wall()
			session := func() (client.Session, error) {
				ch, err := client.Open(t.Context(), client.OpenConfig{Trust: trust, Gateway: gatewayTo(t, address), FreshEvidence: true})
				if err != nil {
					return client.Session{}, err
				}
				defer ch.Close(context.WithoutCancel(t.Context()))
				return ch.Session(t.Context())
			}
			opened, err := session()
			if err != nil {
				t.Fatalf("a session with fresh evidence: %v", err)
			}
			said := map[string][]attest.Fetched{"authority": trust.Evidence().Fetched(), "unit": opened.Evidence.Fetched()}
			for _, d := range opened.Evidence.Devices() {
				said[string(d.Platform)] = d.Fetched
			}
			if len(said) != 1+len(ruled) {
				t.Errorf("got %d parts, want %d", len(said), 1+len(ruled))
			}
			for whose, checked := range said {
				if len(checked) == 0 {
					t.Errorf("%s: nothing says when its vendor's documents were had", whose)
				}
				for _, c := range checked {
					if !c.At.Equal(had) || !c.Until.After(had) {
						t.Errorf("%s: got %+v, want %v", whose, c, had)
					}
				}
			}
			report, err := client.Verify(t.Context(), address, client.Config{Trust: trust})
			if err != nil {
				t.Fatal(err)
			}
			if c := report.Hardware.Collateral; len(c) == 0 || !c[0].At.Equal(had) || !c[0].Until.After(had) {
				t.Errorf("report: got %+v, want %v", c, had)
			}
			e.pass(48 * time.Hour)
			if _, err = e.enrol(p, "scoring 1"); err != nil {
				t.Errorf("as old as it may be: %v", err)
			}
			e.pass(time.Second)
			_, err = e.enrol(p, "scoring 1")
			testworld.Refused(t, err, wire.Expired)
			pins := e.TrustConfig("scoring")
			pins.Verifier, pins.Clock = verifier(), e.wall
			_, err = client.FetchTrust(t.Context(), pins)
			testworld.Refused(t, err, wire.Expired)
		})
	}
}

// gatewayTo forwards requests to one unit unchanged, like the manager's gateway.
func gatewayTo(t *testing.T, address string) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: address})
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL
}
