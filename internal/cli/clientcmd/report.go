package clientcmd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/tree"
)

// reportTree is a report for people, one line a fact.
func reportTree(r *client.Report) string {
	root := tree.New("%s: trusted%s", r.Cluster.ServerName, mark(r.Hardware.Development, " (DEVELOPMENT: protects nothing from the host)"))
	addHardware(root.Add("hardware"), r)
	addCode(root.Add("code"), r)
	p, k := r.Policy, r.Key
	policy := root.Add("policy")
	row(policy, "domain", p.TrustDomain)
	row(policy, "sequence", fmt.Sprintf("%d, created %s", p.Sequence, frame.RFC3339(p.Created)))
	row(policy, "digest", p.Digest.String())
	row(policy, "head", p.Head.String())
	row(policy, "genesis", p.Genesis.String())
	row(policy, "owners", fmt.Sprintf("%d of %s", p.Quorum, strings.Join(p.Owners, ", ")))
	key := root.Add("key")
	row(key, "kind", fmt.Sprintf("%s, key mode %s", k.Kind, k.Mode))
	row(key, "serial", k.Serial)
	row(key, "valid", frame.RFC3339(k.NotBefore)+" to "+frame.RFC3339(k.NotAfter))
	row(key, "under", "authority root "+k.Authority.String())
	addCluster(root.Add("cluster"), r)
	return root.Drawn()
}

func row(part *tree.Node, name, value string) { part.Add("%-12s %s", name, value) }

func mark(set bool, text string) string {
	if set {
		return text
	}
	return ""
}

func addHardware(part *tree.Node, r *client.Report) {
	h := r.Hardware
	row(part, "authority", fmt.Sprintf("%s, chip %s%s", h.Authority, h.Chip, mark(h.Debug, ", DEBUG: its host can read it")))
	row(part, "units", fmt.Sprintf("%v, as policy accepts them", h.Units))
	for _, c := range h.Collateral {
		row(part, "collateral", fmt.Sprintf("%s, checked %s, valid until %s", c.Role, frame.RFC3339(c.At), frame.RFC3339(c.Until)))
	}
	if h.Authority == attest.TPM || slices.Contains(h.Units, attest.TPM) {
		row(part, "tpm", "proves what was started, and keeps nothing from root on its machine; it has no debug state")
	}
}

func addCode(part *tree.Node, r *client.Report) {
	row(part, "task", r.Code.Task)
	row(part, "release", r.Code.Release)
	row(part, "identity", r.Code.Identity.String())
	for _, m := range r.Code.Measurements {
		row(part, "measurement", m)
	}
	for _, release := range r.Code.Dynamic {
		row(part, "dynamic", release+" loads code that is not measured: shared libraries, or all that an interpreter runs")
	}
	row(part, "authority", r.Code.Authority)
}

func addCluster(part *tree.Node, r *client.Report) {
	same := "one identity"
	if !r.Cluster.OneIdentity {
		same = "several releases of the task"
	}
	row(part, "identity", same)
	for _, a := range r.Cluster.Addresses {
		found := "checked, serial " + a.Serial
		if a.Error != "" {
			found = "does not answer: " + a.Error
		}
		row(part, a.Address, found)
	}
}
