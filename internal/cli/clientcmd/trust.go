// Package clientcmd is what a client runs: `cohort trust`, `cohort verify`, `cohort request`
// and `cohort proxy`. Each begins with the pins on its command line and with evidence of an
// authority; package client decides what is trusted.
//
// Files, each using those before it: receipt.go, session.go, report.go, trust.go,
// request.go, verify.go, upstream.go, proxy.go.
package clientcmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// trustView is trust as a command prints it.
type trustView struct {
	TrustDomain string         `json:"trust_domain"`
	Development bool           `json:"development"`
	Sequence    uint64         `json:"policy_sequence"`
	Head        string         `json:"policy_head"`
	Root        string         `json:"authority_root"`
	Platform    string         `json:"authority_platform"`
	Measured    string         `json:"authority_measurement"`
	EvidenceAt  string         `json:"authority_evidence_at"`
	Identities  []identityView `json:"identities"`
	File        string         `json:"file,omitempty"`
	PEM         string         `json:"pem,omitempty"`
	OneOff      *oneOffView    `json:"ohttp,omitempty"`
}

// oneOffView describes a key configuration for one-off requests.
type oneOffView struct {
	File    string `json:"file"`
	URL     string `json:"url"` // where requests are posted
	Unit    string `json:"unit"`
	ID      string `json:"identity"`
	Expires string `json:"expires"`
}

// String is the view as lines.
func (v *oneOffView) String() string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("one-off keys  signed by unit %s of identity %s, until %s\n              for requests to %s\nwrote         %s\n", v.Unit, v.ID, v.Expires, v.URL, v.File)
}

type identityView struct {
	Task    string `json:"task,omitempty"`
	Release string `json:"release,omitempty"`
	Group   string `json:"group,omitempty"`
	ID      string `json:"identity"`
	// Dynamic lists the releases behind it that may load code which is not
	// measured.
	Dynamic []string `json:"dynamic,omitempty"`
}

func viewTrust(t *client.Trust) trustView {
	doc := t.Policy().Document()
	v := trustView{
		TrustDomain: doc.TrustDomain, Development: doc.Development, Sequence: doc.Sequence, Head: t.Policy().PolicyHead().String(),
		Root: doc.Authority.Root.String(), Platform: string(t.Evidence().Measurement().Platform), Measured: t.Evidence().Measurement().String(),
		EvidenceAt: frame.RFC3339(t.EvidenceAt()),
	}
	for _, i := range t.Identities() {
		v.Identities = append(v.Identities, identityView{i.Task, i.Release, i.Group, i.ID.String(), t.Dynamic(i)})
	}
	return v
}

// String is the view as lines, as verify and status print them too.
func (v trustView) String() string {
	var b strings.Builder
	if v.Development {
		b.WriteString("DEVELOPMENT: soft roots may vouch; nothing is protected from its host\n")
	}
	fmt.Fprintf(&b, "trust domain  %s\npolicy        %d, head %s\n", v.TrustDomain, v.Sequence, v.Head)
	fmt.Fprintf(&b, "authority     root %s\n              %s, evidence of %s\n", v.Root, v.Measured, v.EvidenceAt)
	for _, i := range v.Identities {
		if i.Group != "" {
			fmt.Fprintf(&b, "group         %s, identity %s\n", i.Group, i.ID)
		} else {
			fmt.Fprintf(&b, "task          %s release %s, identity %s\n", i.Task, i.Release, i.ID)
		}
		for _, release := range i.Dynamic {
			fmt.Fprintf(&b, "dynamic       %s loads code that is not measured\n", release)
		}
	}
	return b.String()
}

// Trust is `cohort trust`.
func Trust(a *frame.App) *cobra.Command {
	var p authorityclient.Pins
	var out, authority string
	var oneOff oneOffFlags
	cmd := &cobra.Command{
		Use:   "trust (--authority URL | --gateway URL) --genesis H (--task T | --group G | --id ID)",
		Short: "Check an authority and write the roots of a task or group, for any TLS client",
		Long: "Replay the owners' signatures from the genesis, appraise the authority's own\n" +
			"evidence, and write the identity roots as PEM: for a task those of all live\n" +
			"releases, for an identity exactly one. Without --authority all of it comes through\n" +
			"a gateway, under the authority's signature. With --ohttp, write the keys for one-off\n" +
			"requests of plain Oblivious HTTP clients, which a unit signed, as well.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOff.validate(p); err != nil {
				return err
			}
			p.Gateway = oneOff.gateway
			t, err := authorityclient.Trust(cmd.Context(), a, p)
			if err != nil {
				return err
			}
			if authority != "" {
				if err := frame.ReplaceFile(authority, frame.CertificatePEM(t.AuthorityRoot())); err != nil {
					return err
				}
			}
			v := viewTrust(t)
			if v.OneOff, err = oneOff.write(cmd.Context(), t); err != nil {
				return err
			}
			if name := p.Task + p.Group; out == "" && name != "" {
				out = name + "-root.pem"
			}
			if out == "-" || out == "" {
				v.PEM = string(t.RootPEM())
				return a.PrintResult("trust", v, v.PEM)
			}
			if err := frame.ReplaceFile(out, t.RootPEM()); err != nil {
				return err
			}
			v.File = out
			return a.PrintResult("trust", v, v.String()+fmt.Sprintf("wrote         %s\n", out)+v.OneOff.String())
		},
	}
	p.Register(cmd)
	p.RegisterGroup(cmd, "group to follow through the rosters its parties approve")
	cmd.Flags().StringVar(&out, "out", "", `file for the roots, "-" for stdout (default TASK-root.pem)`)
	cmd.Flags().StringVar(&authority, "authority-out", "", "file for the authority's root, which `cohort manager` is given")
	cmd.Flags().StringVar(&oneOff.file, "ohttp", "", "file for the keys of one-off requests (application/ohttp-keys)")
	oneOff.gateway.Register(cmd, "URL of a gateway, or of several with commas between: the units' with --ohttp, and without --authority the way to trust")
	p.RegisterFresh(cmd)
	return cmd
}

// oneOffFlags name the source and the file of keys for one-off requests.
type oneOffFlags struct {
	file    string
	gateway authorityclient.Gateway
}

func (f oneOffFlags) validate(p authorityclient.Pins) error {
	switch {
	case f.gateway.URL == "" && (f.file != "" || f.gateway.CA != ""):
		return frame.Usage("--ohttp and --manager-ca need --gateway")
	case f.gateway.URL != "" && f.file == "" && len(p.Authorities) > 0:
		return frame.Usage("--gateway beside --authority needs --ohttp")
	}
	return nil
}

// write fetches the keys, checks them by what is trusted, and writes them.
func (f oneOffFlags) write(ctx context.Context, t *client.Trust) (*oneOffView, error) {
	if f.file == "" {
		return nil, nil
	}
	config := client.OneOffConfig{Trust: t, Gateway: f.gateway.URL}
	var err error
	if config.CA, err = f.gateway.CertPool(); err != nil {
		return nil, err
	}
	o, err := client.NewOneOff(ctx, config)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	keys, unit, expires := o.SignedKeys()
	v := &oneOffView{File: f.file, URL: o.GatewayURL().String(), Unit: unit.UnitID().String(), ID: unit.ID().String(), Expires: frame.RFC3339(expires)}
	return v, frame.ReplaceFile(f.file, keys)
}
