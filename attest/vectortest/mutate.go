package vectortest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
)

// The number of flips and of truncations of evidence, and of each endorsement, since each
// changed endorsement makes an appraiser check all endorsements again. With -short it is an
// eighth. COHORT_FULL=1 tries every flip and truncation, except for unread files, and for
// endorsements over 64 KiB (the event log of a TDX quote has 256), where it tries a hundred
// times as many.
const (
	samplesOfEvidence    = 160
	samplesOfEndorsement = 40
	largeEndorsement     = 64 << 10
)

func reasonOf(err error) attest.Reason {
	var r *attest.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return "not a refusal"
}

// Mutate flips bits in and truncates every file of every vector, under the policy that
// accepts the vector. Altered evidence must be refused, except where Subject.Unsigned
// reports that no signature covers the byte. An altered endorsement must be refused or
// change no claim. If no policy accepts a vector, every alteration of it must be refused
// too. Every refusal has a reason of the closed list, and nothing panics.
func Mutate(t *testing.T, s Subject) {
	for _, v := range load(t, s.Platform) {
		for _, suffix := range v.evidence() {
			t.Run(strings.TrimSuffix(filepath.Base(v.dir)+"/"+suffix, "/"), func(t *testing.T) {
				t.Parallel()
				judge{Subject: s, vector: v, suffix: suffix}.mutate(t)
			})
		}
	}
}

func (c judge) mutate(t reporter) {
	good, err := c.appraise(c.good(t), nil, c.VerifyAt)
	if (err == nil) != c.accepted() {
		t.Fatalf("the vector itself: got %v, want it accepted: %v", err, c.accepted())
	}
	for role, content := range c.content {
		if _, own, suffixed := strings.Cut(role, "."); suffixed && own != c.suffix {
			continue
		}
		m := mutant{judge: c, role: role, content: content, good: good}
		m.evidence = role == "evidence" || strings.HasPrefix(role, "evidence.")
		m.unread = !m.evidence && m.same(t, nil) && m.same(t, []byte{0})
		for bit := 0; bit < 8*len(content); bit += m.stride(8 * len(content)) {
			m.flip(t, bit)
		}
		for size := 0; size < len(content); size += m.stride(len(content)) {
			m.try(t, content[:size], size)
		}
		m.try(t, append(bytes.Clone(content), 0), len(content)-1)
	}
}

// mutant is a file of a vector with alterations.
type mutant struct {
	judge
	role     string
	evidence bool
	unread   bool // appraisal returns the same without it, or with other content
	content  []byte
	good     attest.Claims
}

// stride returns the step that visits n places in the number of samples. It is odd, so that
// flips reach every bit of a byte.
func (m mutant) stride(n int) int {
	samples := samplesOfEndorsement
	if m.evidence {
		samples = samplesOfEvidence
	}
	switch {
	case os.Getenv("COHORT_FULL") == "1" && !m.unread && !m.evidence && len(m.content) > largeEndorsement:
		samples *= 100
	case os.Getenv("COHORT_FULL") == "1" && !m.unread:
		return 1
	case testing.Short():
		samples /= 8
	}
	return n/samples | 1
}

func (m mutant) flip(t reporter, bit int) {
	t.Helper()
	flipped := bytes.Clone(m.content)
	flipped[bit/8] ^= 1 << (bit % 8)
	m.try(t, flipped, bit/8)
}

// same reports whether replacing the file's content changes nothing.
func (m mutant) same(t reporter, content []byte) bool {
	claims, err := m.appraise(m.vector.good(t), map[string][]byte{m.role: content}, m.VerifyAt)
	return err == nil && reflect.DeepEqual(claims, m.good)
}

// try appraises the altered file. offset is the offset of the flipped byte, of the first
// removed byte, or of the last byte before an added one.
func (m mutant) try(t reporter, altered []byte, offset int) {
	t.Helper()
	claims, err := m.appraise(m.vector.good(t), map[string][]byte{m.role: altered}, m.VerifyAt)
	free := m.Unsigned != nil && m.Unsigned(m.content, offset)
	switch {
	case err != nil && reasonOf(err) == "not a refusal":
		t.Errorf("%s altered at %d, %d bytes: refused without a reason: %v", m.role, offset, len(altered), err)
	case err != nil:
	case !m.accepted():
		t.Errorf("%s altered at %d, %d bytes: accepted, and the vector is not", m.role, offset, len(altered))
	case m.evidence && !free:
		t.Errorf("%s altered at %d, %d bytes: accepted", m.role, offset, len(altered))
	case !m.evidence && !reflect.DeepEqual(claims, m.good):
		t.Errorf("%s altered at %d, %d bytes: accepted with other claims", m.role, offset, len(altered))
	}
}
