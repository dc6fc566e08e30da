package client

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// branch is one part of the printed tree: a name and lines of key and value.
type branch struct {
	name  string
	lines [][2]string
}

// WriteTree prints the report for people, one line a fact.
func (r *Report) WriteTree(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: trusted%s\n", r.Cluster.ServerName, mark(r.Hardware.Development, " (DEVELOPMENT: protects nothing from the host)"))
	branches := []branch{r.hardware(), r.code(), r.policy(), r.key(), r.cluster()}
	for i, part := range branches {
		stem, below := "├─ ", "│  "
		if i == len(branches)-1 {
			stem, below = "└─ ", "   "
		}
		b.WriteString(stem + part.name + "\n")
		for j, line := range part.lines {
			twig := "├─ "
			if j == len(part.lines)-1 {
				twig = "└─ "
			}
			fmt.Fprintf(&b, "%s%s%-12s %s\n", below, twig, line[0], line[1])
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func mark(set bool, text string) string {
	if set {
		return text
	}
	return ""
}

func (r *Report) hardware() branch {
	h := r.Hardware
	authority := fmt.Sprintf("%s, chip %s%s", h.Authority, h.Chip, mark(h.Debug, ", DEBUG: its host can read it"))
	lines := [][2]string{{"authority", authority}, {"units", fmt.Sprintf("%v, as policy accepts them", h.Units)}}
	for _, c := range h.Collateral {
		lines = append(lines, [2]string{"collateral", fmt.Sprintf("%s, checked %s, valid until %s", c.Role, c.At.UTC().Format(time.RFC3339), c.Until.UTC().Format(time.RFC3339))})
	}
	if h.Authority == attest.TPM || slices.Contains(h.Units, attest.TPM) {
		lines = append(lines, [2]string{"tpm", "proves what was started, and keeps nothing from root on its machine; it has no debug state"})
	}
	return branch{"hardware", lines}
}

func (r *Report) code() branch {
	lines := [][2]string{{"task", r.Code.Task}, {"release", r.Code.Release}, {"identity", r.Code.Identity.String()}}
	for _, m := range r.Code.Measurements {
		lines = append(lines, [2]string{"measurement", m})
	}
	for _, release := range r.Code.Dynamic {
		lines = append(lines, [2]string{"dynamic", release + " loads code that is not measured: shared libraries, or all that an interpreter runs"})
	}
	return branch{"code", append(lines, [2]string{"authority", r.Code.Authority})}
}

func (r *Report) policy() branch {
	p := r.Policy
	return branch{"policy", [][2]string{
		{"domain", p.TrustDomain},
		{"sequence", fmt.Sprintf("%d, created %s", p.Sequence, p.Created.UTC().Format(time.RFC3339))},
		{"digest", p.Digest.String()},
		{"head", p.Head.String()},
		{"genesis", p.Genesis.String()},
		{"owners", fmt.Sprintf("%d of %s", p.Quorum, strings.Join(p.Owners, ", "))},
	}}
}

func (r *Report) key() branch {
	k := r.Key
	return branch{"key", [][2]string{
		{"kind", fmt.Sprintf("%s, key mode %s", k.Kind, k.Mode)},
		{"serial", k.Serial},
		{"valid", k.NotBefore.UTC().Format(time.RFC3339) + " to " + k.NotAfter.UTC().Format(time.RFC3339)},
		{"under", "authority root " + k.Authority.String()},
	}}
}

func (r *Report) cluster() branch {
	same := "one identity"
	if !r.Cluster.OneIdentity {
		same = "several releases of the task"
	}
	lines := [][2]string{{"identity", same}}
	for _, a := range r.Cluster.Addresses {
		found := "checked, serial " + a.Serial
		if a.Error != "" {
			found = "does not answer: " + a.Error
		}
		lines = append(lines, [2]string{a.Address, found})
	}
	return branch{"cluster", lines}
}
