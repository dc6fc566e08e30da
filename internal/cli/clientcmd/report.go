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
	root := tree.New("%s: trusted%s", r.Cluster.ServerName, textIf(r.Hardware.Development, " (DEVELOPMENT: protects nothing from the host)"))
	addHardware(root.Add("hardware"), r)
	addCode(root.Add("code"), r)
	p, k := r.Policy, r.Key
	policy := root.Add("policy")
	addRow(policy, "domain", p.TrustDomain)
	addRow(policy, "sequence", fmt.Sprintf("%d, created %s", p.Sequence, frame.RFC3339(p.Created)))
	addRow(policy, "digest", p.Digest.String())
	addRow(policy, "head", p.Head.String())
	addRow(policy, "genesis", p.Genesis.String())
	addRow(policy, "owners", fmt.Sprintf("%d of %s", p.Quorum, strings.Join(p.Owners, ", ")))
	key := root.Add("key")
	addRow(key, "kind", fmt.Sprintf("%s, key mode %s", k.Kind, k.Mode))
	addRow(key, "serial", k.Serial)
	addRow(key, "valid", frame.RFC3339(k.NotBefore)+" to "+frame.RFC3339(k.NotAfter))
	addRow(key, "under", "authority root "+k.Authority.String())
	addCluster(root.Add("cluster"), r)
	return root.Drawn()
}

func addRow(part *tree.Node, name, value string) { part.Add("%-12s %s", name, value) }

func textIf(set bool, text string) string {
	if set {
		return text
	}
	return ""
}

func addHardware(part *tree.Node, r *client.Report) {
	h := r.Hardware
	addRow(part, "authority", fmt.Sprintf("%s, chip %s%s", h.Authority, h.Chip, textIf(h.Debug, ", DEBUG: its host can read it")))
	addRow(part, "units", fmt.Sprintf("%v, as policy accepts them", h.Units))
	for _, c := range h.Collateral {
		addRow(part, "collateral", fmt.Sprintf("%s, checked %s, valid until %s", c.Role, frame.RFC3339(c.At), frame.RFC3339(c.Until)))
	}
	if h.Authority == attest.TPM || slices.Contains(h.Units, attest.TPM) {
		addRow(part, "tpm", "proves what was started, and keeps nothing from root on its machine; it has no debug state")
	}
}

func addCode(part *tree.Node, r *client.Report) {
	addRow(part, "task", r.Code.Task)
	addRow(part, "release", r.Code.Release)
	addRow(part, "identity", r.Code.Identity.String())
	for _, m := range r.Code.Measurements {
		addRow(part, "measurement", m)
	}
	for _, release := range r.Code.Dynamic {
		addRow(part, "dynamic", release+" loads code that is not measured: shared libraries, or all that an interpreter runs")
	}
	addRow(part, "authority", r.Code.Authority)
}

func addCluster(part *tree.Node, r *client.Report) {
	same := "one identity"
	if !r.Cluster.OneIdentity {
		same = "several releases of the task"
	}
	addRow(part, "identity", same)
	for _, a := range r.Cluster.Addresses {
		found := "checked, serial " + a.Serial
		if a.Error != "" {
			found = "does not respond: " + a.Error
		}
		addRow(part, a.Address, found)
	}
}
