package systest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// wiretap is a TCP proxy that records all traffic in both directions.
type wiretap struct {
	address string

	mu      sync.Mutex
	capture []byte // guarded by mu
}

func newWiretap(t *testing.T, to string) *wiretap {
	t.Helper()
	w := &wiretap{}
	w.address = forwarded(t, to, func(to io.Writer, from io.Reader) { io.Copy(to, io.TeeReader(from, w)) })
	return w
}

// Write records the bytes.
func (w *wiretap) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.capture = append(w.capture, b...)
	return len(b), nil
}

func (w *wiretap) captured() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.capture
}

// ask sends a marker in body, query and header, and requires the matching marker in the
// response.
func ask(ctx context.Context, ch *client.Channel, marker []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+ServerName("scoring")+"/?q="+hex.EncodeToString(marker), bytes.NewReader(marker))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+hex.EncodeToString(marker))
	answer, err := ch.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if want := answerMarker(marker); err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("got answer %x, want %x", got, want)
	}
	return err
}

// answerMarker returns a unit's response to a marker.
func answerMarker(marker []byte) []byte {
	d := sha256.Sum256(append([]byte("answer"), marker...))
	return d[:]
}

// page fetches a page of a server, over TLS or not.
func page(t *testing.T, url string) []byte {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}
	defer hc.CloseIdleConnections()
	answer, err := hc.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	return testworld.Must(io.ReadAll(answer.Body))
}

// markerStory is a cluster of processes with all its secrets.
type markerStory struct {
	*apart
	units  []*unitProcess
	spy    *spy
	report api.Report
	tap    *wiretap

	public *search // session and unit ids, which must be found to show that a search works
	secret *search // secrets of units and clients alone
	given  *search // secrets that the authority provides to units
}

func newMarkerStory(t *testing.T) *markerStory {
	t.Helper()
	a := newApart(t, time.Hour)
	bin := buildUnit(t, "")
	s := &markerStory{
		apart: a, units: []*unitProcess{a.start(bin), a.start(bin)}, spy: newSpy(t, a),
		tap: newWiretap(t, a.gateway.Gateway), public: newSearch(), secret: newSearch(), given: newSearch(),
	}
	s.report = s.spy.report()
	s.spy.listen(s.report)
	return s
}

// TestMarkers is case 20: the content of requests and responses, and the keys that protect
// it, are found in the memory of units, and never at the manager, the authority, the bus,
// the disk or the network. The authority provides ring keys and the shared key, so its
// memory contains those too. Ids, which are not secret, are found in each of these places,
// which shows that the search works there.
func TestMarkers(t *testing.T) {
	sessions, requests := 3, 4
	if full() {
		sessions, requests = 30, 20
	}
	s := newMarkerStory(t)
	for range sessions {
		s.speak(requests)
	}
	s.learnKeys()
	s.learnSecrets(sessions)
	s.wantInUnits("request", "answer", "session secret", "AES key", "nonce key", "ring key", "shared key")
	s.wantNowhereElse()
	s.wantNotInDumps()
}

// speak opens a session and sends requests in it.
func (s *markerStory) speak(requests int) {
	s.t.Helper()
	ch, err := client.Open(s.t.Context(), client.OpenConfig{Trust: s.trust, Gateway: "http://" + s.tap.address, FreshEvidence: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ch.Close(context.Background()) })
	session, err := ch.Session(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.public.add("session id", session.ID[:])
	for range requests {
		marker := make([]byte, 32)
		rand.Read(marker)
		s.secret.add("request", marker)
		s.secret.add("answer", answerMarker(marker))
		if err := ask(s.t.Context(), ch, marker); err != nil {
			s.t.Fatal(err)
		}
	}
}

// learnKeys adds all keys that a unit receives or derives to the searches.
func (s *markerStory) learnKeys() {
	s.t.Helper()
	for _, key := range ringKeys(s.report.Rings) {
		s.given.add("ring key", key.Key)
		for _, u := range s.units {
			aesKey, nonceKey := sealKeys(key, u.Unit)
			s.secret.add("AES key", aesKey)
			s.secret.add("nonce key", nonceKey)
		}
	}
	for _, u := range s.units {
		s.public.add("unit id", u.Unit[:])
	}
	leaf := testworld.Must(x509.ParsePKCS8PrivateKey(s.report.LeafKey)).(*ecdsa.PrivateKey)
	s.given.add("shared key", testworld.Must(leaf.Bytes()))
}

// learnSecrets adds the secrets of all sessions to the search. It decrypts them with the
// ring keys from the sealed sessions on the bus.
func (s *markerStory) learnSecrets(sessions int) {
	s.t.Helper()
	keys, opened := ringKeys(s.report.Rings), map[string]bool{}
	for end := time.Now().Add(10 * time.Second); len(opened) < sessions; time.Sleep(100 * time.Millisecond) {
		items, _ := s.spy.items()
		for _, item := range items {
			if secret, ok := openSealed(item, keys); ok && !opened[string(secret)] {
				opened[string(secret)] = true
				s.secret.add("session secret", secret)
			}
		}
		if time.Now().After(end) {
			s.t.Fatalf("%d of %d sessions came over the bus and could be opened", len(opened), sessions)
		}
	}
}

// wantInUnits requires that each secret is found in some unit.
func (s *markerStory) wantInUnits(names ...string) {
	s.t.Helper()
	all := found{}
	for _, u := range s.units {
		for _, search := range []*search{s.secret, s.given} {
			for what, n := range search.memory(s.t, u.pid) {
				all[what] += n
			}
		}
	}
	for _, name := range names {
		if all.of(name) == 0 {
			s.t.Errorf("memory of the units: found no %s, so the search shows nothing", name)
		}
	}
	s.t.Logf("memory of the units: found %v", all)
}

// wantNowhereElse requires that no secret is found in any other place.
func (s *markerStory) wantNowhereElse() {
	s.t.Helper()
	data := filepath.Dir(s.gateway.CA) // the manager's
	all := []string{s.authority.dir, s.manager.dir, data}
	for _, u := range s.units {
		all = append(all, u.dir)
	}
	_, messages := s.spy.items()
	metrics := append(page(s.t, "http://"+s.asked.Metrics+api.PathMetrics), page(s.t, "http://"+s.gateway.Metrics+api.PathMetrics)...)
	for _, place := range []struct {
		name, control string
		in            func(*search) found
		secrets       []*search
	}{
		{"memory of the manager", "session id", func(x *search) found { return x.memory(s.t, s.manager.pid) }, []*search{s.secret, s.given}},
		{"memory of the authority", "unit id", func(x *search) found { return x.memory(s.t, s.authority.pid) }, []*search{s.secret}},
		{"messages of the bus", "session id", func(x *search) found { return x.bytes(messages) }, []*search{s.secret, s.given}},
		{"capture before the gateway", "session id", func(x *search) found { return x.bytes(s.tap.captured()) }, []*search{s.secret, s.given}},
		{"files of the manager", "session id", func(x *search) found { return x.files(s.t, data) }, []*search{s.secret, s.given}},
		{"files and logs of all", "unit id", func(x *search) found { return x.files(s.t, all...) }, []*search{s.secret, s.given}},
		{"metrics", "", func(x *search) found { return x.bytes(metrics) }, []*search{s.secret, s.given}},
	} {
		for _, secret := range place.secrets {
			s.wantNothing(place.name, place.in(secret))
		}
		if place.control != "" && place.in(s.public).of(place.control) == 0 {
			s.t.Errorf("%s: found no %s, so the search shows nothing", place.name, place.control)
		}
	}
}

func (s *markerStory) wantNothing(where string, f found) {
	s.t.Helper()
	for what, n := range f {
		s.t.Errorf("%s: found %s %d times", where, what, n)
	}
}

// wantNotInDumps ends manager and authority as a crash does, and requires that their crash
// dumps contain no secret.
func (s *markerStory) wantNotInDumps() {
	s.t.Helper()
	for name, p := range map[string]*process{"manager": s.manager, "authority": s.authority} {
		p.end(syscall.SIGQUIT)
		dump := testworld.Must(os.ReadFile(filepath.Join(p.dir, "log")))
		if !bytes.Contains(dump, []byte("goroutine ")) {
			s.t.Errorf("%s: no crash dump", name)
		}
		s.wantNothing("crash dump of the "+name, s.secret.bytes(dump))
		s.wantNothing("crash dump of the "+name, s.given.bytes(dump))
	}
}
