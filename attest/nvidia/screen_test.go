package nvidia_test

import (
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestScreen: without the lists, a report is refused if no GPU of NVIDIA's signed it, or if the
// rules refuse it. Revoked certificates are not detected without lists.
func TestScreen(t *testing.T) {
	for _, row := range []struct {
		name   string
		change change
		want   attest.Reason
	}{
		{"good", func(*scene) {}, ""},
		{"a bit after it was signed", mangle(func(raw []byte) []byte { raw[40] ^= 1; return raw }), ""},
		{"a model that policy does not name", func(s *scene) { s.rules.NVIDIA.Models = []string{"GB100"} }, wire.NoPlatform},
		{"a root that policy does not name", func(s *scene) { s.rules.Roots = []attest.Digest{{1}} }, wire.UnknownRoot},
		{"no chain", func(s *scene) { s.mangle = func(e *attest.Evidence) { delete(e.Endorsed, "cert_chain") } }, wire.BadChain},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newScene()
			row.change(s)
			e := s.evidence(t)
			delete(e.Endorsed, "root_crl")
			delete(e.Endorsed, "model_crl")
			_, err := nvidia.Platform().Appraiser().(attest.Screener).Screen(e.Raw, e.Endorsed, s.rules, s.at)
			if row.name == "good" != (err == nil) || row.want != "" && !errors.Is(err, row.want) {
				t.Errorf("got %v, want reason %q", err, row.want)
			}
		})
	}
}
