package collateral

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestEndorse: what was fetched is all that the real appraisers want, and is
// fetched once.
func TestEndorse(t *testing.T) {
	intel := attesttest.NewDCAPVendor(noon)
	chip := intel.Chip(intel.TCB)
	type row struct {
		name      string
		knows     http.Handler
		device    attester
		appraiser attest.Appraiser
		rules     attest.Rules
		asked     int
	}
	rows := []row{
		{"tdx", intel.Service(), chip.Attester(attesttest.MeasureTDX("td")), dcap.TDXPlatform().Appraiser(), intel.Rules(), 4},
		{"sgx", intel.Service(), chip.Attester(attesttest.MeasureSGX("enclave")), dcap.SGXPlatform().Appraiser(), intel.Rules(), 4},
	}
	for _, product := range []string{"Milan", "Genoa", "Turin"} {
		amd := attesttest.NewSNPVendor(product, noon)
		chip := amd.Chip(firmware)
		rows = append(rows, row{product, chip.Service(), chip.Attester(attesttest.MeasureSNP("guest")), snp.Platform().Appraiser(), amd.Rules(), 3})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			s := serve(t)
			s.knows = r.knows
			at := noon
			c := New(s.config(&at))
			for _, want := range []int{r.asked, 0} {
				e := evidence(t, r.device)
				endorsed, err := c.Endorse(t.Context(), e)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.appraiser.Appraise(e.Raw, endorsed, r.rules, noon); err != nil {
					t.Error(err)
				}
				if got := s.count(); got != want {
					t.Errorf("asked %d times, want %d", got, want)
				}
			}
			if got := len(c.Stats()); got != r.asked {
				t.Errorf("got %d documents, want %d", got, r.asked)
			}
		})
	}
}

// TestChecked: endorsements say of each list and statement when it was had, and
// of certificates nothing. A statement that came with the evidence gives way to
// the vendor's, and stands in, unchecked, while he is down.
func TestChecked(t *testing.T) {
	intel, s := attesttest.NewDCAPVendor(noon), serve(t)
	s.knows = intel.Service()
	at := noon
	c := New(s.config(&at))
	brought := func() attest.Endorsements {
		t.Helper()
		e := evidence(t, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td")))
		e.Endorsed = attest.Endorsements{"tcb_info": []byte("older")}
		endorsed, err := c.Endorse(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		return e.WithEndorsements(endorsed).Endorsed
	}
	got := brought()
	at = noon.Add(time.Hour) // nothing is had anew
	for range 2 {
		all, err := got.Fetched()
		if err != nil {
			t.Fatal(err)
		}
		var roles []string
		for _, one := range all {
			roles = append(roles, one.Role)
			if !one.At.Equal(noon) || !one.Until.After(noon) || one.Digest != wire.Sum(got[one.Role]) {
				t.Errorf("got %+v, want what was had at noon", one)
			}
		}
		if want := []string{"pck_crl", "qe_identity", "root_crl", "tcb_info"}; !slices.Equal(roles, want) {
			t.Errorf("got roles %q, want %q", roles, want)
		}
		got = brought()
	}
	s.answer(status(http.StatusServiceUnavailable))
	c = New(s.config(&at))
	e := evidence(t, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td")))
	e.Endorsed = attest.Endorsements{"tcb_info": []byte("older"), "qe_identity": []byte("older")}
	if endorsed, err := c.Endorse(t.Context(), e); err != nil || len(endorsed) > 0 {
		t.Errorf("while the vendor is down: got %v, %v, want nothing in place of what came", endorsed, err)
	}
}

// TestDownForADay: renewal is tried before the list ends, in vain; issuing goes
// on for as long as the list is valid, then stops with its reason, and goes on
// soon after the vendor is back. No time passes but virtual time.
func TestDownForADay(t *testing.T) {
	service := serve(t)
	bubble.Test(t, func(t *testing.T) {
		vendor := attesttest.NewSNPVendor("Genoa", time.Now())
		vendor.ListUntil = time.Now().Add(30 * time.Hour)
		s := &scene{service: service, vendor: vendor, chip: vendor.Chip(firmware)}
		s.knows = s.chip.Service()
		config := s.config(nil)
		config.Clock = nil
		s.c, s.e = New(config), evidence(t, s.chip.Attester(attesttest.MeasureSNP("guest")))
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go s.c.Run(ctx)
		judge := func(after time.Duration, reason wire.Reason) {
			t.Helper()
			time.Sleep(after)
			s.at = time.Now()
			want(t, s.appraise(t), reason)
		}
		judge(0, "")
		s.count()
		s.answer(status(http.StatusServiceUnavailable))
		judge(24*time.Hour, "") // a virtual day
		if tries := s.count(); tries < 1 || tries > 60 {
			t.Errorf("asked %d times while down, want a few", tries)
		}
		if s.fault(t, "crl") == nil {
			t.Error("nothing tells that the list could not be renewed")
		}
		judge(6*time.Hour, "")
		judge(time.Second, wire.Expired)
		s.listed(vendor, time.Now().Add(72*time.Hour))
		s.answer(nil)
		judge(vendorBackoff.Max+tick, "")
		if err := s.fault(t, "crl"); err != nil {
			t.Errorf("got fault %v after the vendor is back", err)
		}
	})
}

// TestRenewedBeforeTheEnd: lists each day, certificates after two thirds of
// their life, and each once.
func TestRenewedBeforeTheEnd(t *testing.T) {
	service := serve(t)
	bubble.Test(t, func(t *testing.T) {
		vendor := attesttest.NewSNPVendor("Milan", time.Now())
		s := &scene{service: service, vendor: vendor, chip: vendor.Chip(firmware)}
		s.knows = s.chip.Service()
		config := s.config(nil)
		config.Clock = nil
		s.c, s.e = New(config), evidence(t, s.chip.Attester(attesttest.MeasureSNP("guest")))
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go s.c.Run(ctx)
		if _, err := s.c.Endorse(t.Context(), s.e); err != nil {
			t.Fatal(err)
		}
		s.count()
		time.Sleep(daily - tick)
		if got := s.count(); got != 0 {
			t.Errorf("asked %d times within the first day, want 0", got)
		}
		s.listed(vendor, vendor.ListUntil.Add(daily))
		time.Sleep(3 * tick)
		s.mu.Lock()
		asked := strings.Join(s.asked, " ")
		s.mu.Unlock()
		if want := "/vcek/v1/Milan/crl"; asked != want {
			t.Errorf("asked %q after a day, want %q", asked, want)
		}
		time.Sleep(idle + daily)
		if got := len(s.c.Stats()); got != 0 {
			t.Errorf("got %d documents that nobody asked for in a week, want 0", got)
		}
	})
}

func TestDue(t *testing.T) {
	for _, row := range []struct {
		kind attest.DocumentKind
		life time.Duration
		want time.Duration
	}{
		{attest.CertificateDocument, 300 * time.Hour, 200 * time.Hour}, {attest.RevocationListDocument, 300 * time.Hour, 24 * time.Hour},
		{attest.StatementDocument, 30 * time.Hour, 20 * time.Hour},
	} {
		e := entry{item: item{Document: attest.Document{Kind: row.kind}}, doc: Document{Fetched: noon, Expires: noon.Add(row.life)}}
		if got := e.renewAt().Sub(noon); got != row.want {
			t.Errorf("kind %d with life %v: got due after %v, want %v", row.kind, row.life, got, row.want)
		}
	}
}

// TestFaults is one row for each way a source can break: what is broken, and what
// is told while it is.
func TestFaults(t *testing.T) {
	down := func(s *scene) { s.URL = "http://127.0.0.1:1"; s.c = New(s.config(&s.at)) }
	for _, row := range []struct {
		name   string
		spoil  func(s *scene)
		reason wire.Reason
	}{
		{"nothing", func(*scene) {}, ""},
		{"nobody listens", down, wire.Unavailable},
		{"rate limit", func(s *scene) { s.answer(status(http.StatusTooManyRequests)) }, wire.Unavailable},
		{"server error", func(s *scene) { s.answer(status(http.StatusBadGateway)) }, wire.Unavailable},
		{"unknown chip", func(s *scene) { s.answer(status(http.StatusNotFound)) }, wire.Unavailable},
		{"a page in place of a certificate", func(s *scene) { s.answer(func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }) }, wire.Unavailable},
		{"an answer cut off", func(s *scene) {
			s.answer(func(w http.ResponseWriter) { w.Header().Set("Content-Length", "10"); fmt.Fprint(w, "half") })
		}, wire.Unavailable},
		{"no source at all", func(s *scene) {
			s.c = New(Config{Documents: platforms.Supported().Documents, Clock: func() time.Time { return noon }})
		}, wire.Unavailable},
		{"no list", func(s *scene) {
			known := s.knows
			s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/crl") {
					http.NotFound(w, r)
					return
				}
				known.ServeHTTP(w, r)
			})
		}, wire.CRLMissing},
		{"more than a document", func(s *scene) {
			known := s.knows
			s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				known.ServeHTTP(w, r)
				if strings.HasSuffix(r.URL.Path, "/cert_chain") {
					w.Write(bytes.Repeat([]byte("\n"), maxDocument))
				}
			})
		}, wire.Unavailable},
		{"another chip's report", func(s *scene) {
			s.e = evidence(t, s.vendor.Chip(firmware).Attester(attesttest.MeasureSNP("guest")))
		}, wire.Unavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := milan(t)
			row.spoil(s)
			want(t, s.appraise(t), row.reason)
		})
	}
}

// TestBackOff: a vendor who limits the rate is left alone for as long as he asks,
// one who breaks for longer each time, and one who lacks a document is asked for
// others.
func TestBackOff(t *testing.T) {
	for _, row := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		wait   time.Duration
	}{
		{"seconds", status(http.StatusTooManyRequests, "Retry-After", "90"), 90 * time.Second},
		{"date", status(http.StatusServiceUnavailable, "Retry-After", noon.Add(2*time.Minute).Format(http.TimeFormat)), 2 * time.Minute},
		{"no wish", status(http.StatusTooManyRequests), vendorBackoff.First},
		{"a wish of a year", status(http.StatusTooManyRequests, "Retry-After", "31536000"), mostWait},
		{"a wish for yesterday", status(http.StatusTooManyRequests, "Retry-After", "-86400"), vendorBackoff.First},
		{"absent", status(http.StatusNotFound), absence},
		{"no certificate", func(w http.ResponseWriter) { fmt.Fprint(w, "no") }, absence},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := milan(t)
			s.answer(row.answer)
			want(t, s.appraise(t), wire.Unavailable)
			s.answer(nil)
			s.count()
			s.at = noon.Add(row.wait - time.Millisecond)
			want(t, s.appraise(t), wire.Unavailable)
			if got := s.count(); got != 0 {
				t.Errorf("asked %d times too soon, want 0", got)
			}
			s.at = noon.Add(row.wait)
			want(t, s.appraise(t), "")
		})
	}
}

func TestBackOffGrows(t *testing.T) {
	s := milan(t)
	s.answer(status(http.StatusInternalServerError))
	for i, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600} {
		want(t, s.appraise(t), wire.Unavailable)
		if got := s.count(); got != 1 {
			t.Fatalf("try %d: asked %d times, want 1", i, got)
		}
		s.at = s.at.Add(wait*time.Second - 1)
		want(t, s.appraise(t), wire.Unavailable)
		s.at = s.at.Add(1)
	}
	if got := s.count(); got != 0 {
		t.Errorf("asked %d times too soon, want 0", got)
	}
	s.answer(nil)
	want(t, s.appraise(t), "")
	s.answer(status(http.StatusInternalServerError))
	s.at = s.at.Add(time.Hour)
	s.c.entries = map[string]*entry{}
	want(t, s.appraise(t), wire.Unavailable)
	s.at = s.at.Add(vendorBackoff.First)
	s.answer(nil)
	want(t, s.appraise(t), "") // the count began anew
}

// TestOlderList: a mirror cannot turn time back.
func TestOlderList(t *testing.T) {
	s := milan(t)
	want(t, s.appraise(t), "")
	s.listed(s.vendor, s.vendor.ListUntil.Add(-time.Second))
	it := s.c.items(s.e)[1]
	_, err := s.c.renew(t.Context(), it, nil)
	want(t, err, wire.Expired)
	want(t, s.fault(t, "crl"), wire.Expired)
	if got := s.c.entries[it.Name].doc.Expires; got.Before(s.vendor.ListUntil.Add(time.Second)) {
		t.Error("the older list stands in place of the newer")
	}
	s.listed(s.vendor, s.vendor.ListUntil.Add(time.Hour))
	_, err = s.c.renew(t.Context(), it, nil)
	want(t, err, wire.TooMany) // it has no other for now
	s.at = s.at.Add(absence)
	_, err = s.c.renew(t.Context(), it, nil)
	want(t, err, "")
}

// TestOneFlight: many who want one document ask for it once, and one who goes
// away leaves the others to it.
func TestOneFlight(t *testing.T) {
	s := milan(t)
	held, underWay := make(chan struct{}), make(chan struct{}, 3)
	known := s.knows
	s.knows = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		underWay <- struct{}{}
		<-held
		known.ServeHTTP(w, r)
	})
	impatient, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { _, err := s.c.renew(impatient, s.c.items(s.e)[0], nil); gone <- err }()
	<-underWay
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if _, err := s.c.Endorse(t.Context(), s.e); err != nil {
				t.Error(err)
			}
		})
	}
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	close(held)
	wait.Wait()
	if got := s.count(); got != 3 {
		t.Errorf("asked %d times, want once for each of 3 documents", got)
	}
}

// TestWhatCameAlong is not asked for, but for the list.
func TestWhatCameAlong(t *testing.T) {
	s := milan(t)
	s.e.Endorsed = s.chip.Endorsements()
	delete(s.e.Endorsed, "crl")
	want(t, s.appraise(t), "")
	if got := s.count(); got != 1 {
		t.Errorf("asked %d times, want for the list alone", got)
	}
	cloud := s.vendor.CloudChip(firmware, "cloud")
	s.e = evidence(t, cloud.Attester(attesttest.MeasureSNP("guest")))
	s.knows = cloud.Service()
	want(t, s.appraise(t), wire.BadChain) // nobody has a VLEK but the host
	s.e.Endorsed = attest.Endorsements{"vlek": cloud.Endorsements()["vlek"]}
	want(t, s.appraise(t), "")
}

// TestMirror fills a directory and asks nobody.
func TestMirror(t *testing.T) {
	intel := attesttest.NewDCAPVendor(noon)
	e := evidence(t, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td")))
	endorsed := intel.Endorsements(attest.TDX)
	files := fstest.MapFS{}
	put := func(name, role string) { files[name] = &fstest.MapFile{Data: endorsed[role], ModTime: noon} }
	for _, role := range []string{"tcb_info", "qe_identity"} {
		name := map[string]string{"tcb_info": "tdx/90c06f000000/tcb_info.json", "qe_identity": "tdx/qe_identity.json"}[role]
		put(name, role)
		put(name+".chain", role+"_chain")
	}
	put("intel/pck_platform_crl.der", "pck_crl")
	put("intel/root_crl.der", "root_crl")
	c := New(Config{Documents: platforms.Supported().Documents, Mirror: files, Clock: func() time.Time { return noon.Add(time.Hour) }})
	got, err := c.Endorse(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := got.Fetched(); err != nil || len(all) != 4 || !all[0].At.Equal(noon) {
		t.Errorf("checked: got %v, %v, want four at the files' time", all, err)
	}
	delete(got, attest.RoleChecked)
	if !maps.EqualFunc(got, endorsed, bytes.Equal) {
		t.Errorf("got roles %v, want the files", slices.Sorted(maps.Keys(got)))
	}
	for _, status := range c.Stats() {
		if !status.Fetched.Equal(noon) {
			t.Errorf("%s: got age from %v, want the file's time", status.Name, status.Fetched)
		}
	}
	delete(files, "tdx/qe_identity.json.chain")
	_, err = New(Config{Documents: platforms.Supported().Documents, Mirror: files}).Endorse(t.Context(), e)
	want(t, err, wire.Unavailable)
}

// shelf is a cache that outlives a process.
type shelf struct {
	sync.Mutex
	documents map[string]Document
}

func (s *shelf) Load(_ context.Context, name string) Document {
	s.Lock()
	defer s.Unlock()
	return s.documents[name]
}

func (s *shelf) Store(_ context.Context, name string, d Document) {
	s.Lock()
	defer s.Unlock()
	s.documents[name] = d
}

// TestCache: after a restart with the vendor down, what was kept is enough.
func TestCache(t *testing.T) {
	s := milan(t)
	config := s.config(&s.at)
	config.Cache = &shelf{documents: map[string]Document{}}
	s.c = New(config)
	want(t, s.appraise(t), "")
	s.answer(status(http.StatusServiceUnavailable))
	s.c = New(config)
	want(t, s.appraise(t), "")
}

func TestOtherEvidence(t *testing.T) {
	c := New(Config{Documents: platforms.Supported().Documents})
	noPCK := attesttest.NewSNPVendor("Milan", noon).Chip(firmware).Endorsements()["ask_ark"]
	for _, e := range []attest.Evidence{
		{Platform: attest.SGX, Raw: noPCK},
		{}, {Platform: attest.Soft, Raw: []byte{1}}, {Platform: attest.Nitro, Raw: []byte{1}},
		{Platform: attest.SNP, Raw: make([]byte, 1183)}, {Platform: attest.AzureSNP, Raw: make([]byte, 1184)}, {Platform: attest.SGX, Raw: []byte("quote")},
	} {
		if got, err := c.Endorse(t.Context(), e); len(got) > 0 || err != nil {
			t.Errorf("%s: got %v, %v, want nothing", e.Platform, got, err)
		}
	}
}

// TestAzure: the report inside Azure's evidence says what it needs.
func TestAzure(t *testing.T) {
	report := evidence(t, attesttest.NewSNPVendor("Milan", noon).Chip(firmware).Attester(attesttest.MeasureSNP("paravisor")))
	c := New(Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"amd": "https://amd.example"}})
	want := c.items(report)
	got := c.items(attest.Evidence{Platform: attest.AzureSNP, Raw: wire.Frame(wire.LabelAzureEvidence, report.Raw, nil, nil, nil, nil)})
	if len(want) == 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestNVIDIA: the lists of a GPU's model are had from NVIDIA's server, and hold.
func TestNVIDIA(t *testing.T) {
	vendor := attesttest.NewNVIDIAVendor(noon)
	gpu := vendor.GPU("GH100")
	e := evidence(t, gpu)
	s := serve(t)
	s.knows = gpu.Service()
	c := New(Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"nvidia": s.URL}, Client: s.client, Clock: func() time.Time { return noon }})
	got, err := c.Endorse(t.Context(), e)
	if err != nil || len(got) != 3 {
		t.Fatalf("got %d documents, %v, want both lists, and when they were had", len(got), err)
	}
	if want := []string{"/crl/l1-root.crl", "/crl/l2-gh100.crl"}; !slices.Equal(s.asked, want) {
		t.Errorf("asked for %q, want %q", s.asked, want)
	}
	if _, err := nvidia.Platform().Appraiser().Appraise(e.Raw, e.WithEndorsements(got).Endorsed, vendor.Rules(), noon); err != nil {
		t.Error(err)
	}
	if _, err := nvidia.Platform().Appraiser().Appraise(e.Raw, e.Endorsed, vendor.Rules(), noon); !errors.Is(err, wire.CRLMissing) {
		t.Errorf("without them: got %v, want %q", err, wire.CRLMissing)
	}
}

func FuzzItems(f *testing.F) {
	intel := attesttest.NewDCAPVendor(noon)
	turin := attesttest.NewSNPVendor("Turin", noon).Chip(firmware).Attester(attesttest.MeasureSNP("guest"))
	f.Add(evidence(f, turin).Raw)
	f.Add(evidence(f, intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td"))).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := New(Config{Documents: platforms.Supported().Documents, Sources: map[string]string{
			"amd": "https://amd.example", "intel": "https://intel.example", "intel-root": "https://root.example", "nvidia": "https://nvidia.example",
		}})
		for _, platform := range []attest.Platform{attest.SNP, attest.AzureSNP, attest.TDX, attest.SGX, attest.NvidiaGPU} {
			for _, it := range c.items(attest.Evidence{Platform: platform, Raw: raw, Endorsed: attest.Endorsements{"cert_chain": raw}}) {
				request, err := http.NewRequest(http.MethodGet, it.url, nil)
				if err != nil || !strings.HasSuffix(request.URL.Host, ".example") {
					t.Errorf("evidence leads to %q: %v", it.url, err)
				}
				if strings.Contains(it.Name, "..") || len(it.Name) > 300 {
					t.Errorf("evidence leads to the file %q", it.Name)
				}
			}
		}
	})
}
