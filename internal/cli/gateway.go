package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/spf13/cobra"
)

// maxReady bounds the body of a gateway's probe, in bytes.
const maxReady = 1 << 20

// gatewayFlags say where a manager's gateway is. It is trusted with nothing: its
// certificate is checked for availability's sake.
type gatewayFlags struct{ url, ca string }

func (g *gatewayFlags) register(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&g.url, "gateway", "", usage)
	g.registerCA(cmd)
}

func (g *gatewayFlags) registerCA(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.ca, "manager-ca", "", "certificates that the gateway's stands under (PEM; default the system's)")
}

// ready asks whether a manager relays, the first that does, and how many units
// it has ready.
func (g gatewayFlags) ready(ctx context.Context) (units int, err error) {
	for url := range strings.SplitSeq(g.url, ",") {
		if units, err = (gatewayFlags{url, g.ca}).readyOne(ctx); err == nil {
			break
		}
	}
	return units, err
}

func (g gatewayFlags) readyOne(ctx context.Context) (units int, err error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if g.ca != "" {
		if config.RootCAs, err = readPool(g.ca); err != nil {
			return 0, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url+api.PathReady, nil)
	if err != nil {
		return 0, usage("--gateway: %w", err)
	}
	answer, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	var said struct{ Units int }
	if answer.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("manager at %s: %s", g.url, answer.Status)
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxReady)).Decode(&said); err != nil {
		return 0, fmt.Errorf("manager at %s: reading its answer: %w", g.url, err)
	}
	return said.Units, nil
}

// sessionFlags say what is wanted of a session with a whole cluster.
type sessionFlags struct {
	gateway  gatewayFlags
	wanted   bool
	evidence bool
	role     string // of a group; empty outside
}

func (s *sessionFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.wanted, "session", false, "through a gateway, in a session with the whole cluster, encrypted end to end")
	cmd.Flags().BoolVar(&s.evidence, "fresh-evidence", false, "with --session: the unit that opens it proves itself by evidence of this moment")
}

// open opens a session for the trust that a client has.
func (s sessionFlags) open(ctx context.Context, config client.OpenConfig) (*client.Channel, error) {
	config.Gateway, config.FreshEvidence = s.gateway.url, s.evidence
	if s.gateway.ca != "" {
		var err error
		if config.CA, err = readPool(s.gateway.ca); err != nil {
			return nil, err
		}
	}
	if config.Role = s.role; s.role != "" {
		return client.OpenGroup(ctx, config)
	}
	return client.Open(ctx, config)
}

// sessionView tells of a session.
type sessionView struct {
	ID       string   `json:"id"`
	Expires  string   `json:"expires"`
	Unit     string   `json:"unit"`               // that opened it
	Identity string   `json:"identity"`           // of that unit, and so of all
	Evidence string   `json:"evidence,omitempty"` // fresh, as appraised
	Closed   []string `json:"closed,omitempty"`   // units that held it, as each proved when it closed it
}

func viewSession(s client.Session) sessionView {
	v := sessionView{ID: s.ID.String(), Expires: rfc3339(s.Expires), Unit: s.Unit.UnitID().String(), Identity: s.Unit.ID().String()}
	if s.Evidence.OK() {
		v.Evidence = fmt.Sprintf("%s, chip %s", s.Evidence.Measurement(), s.Evidence.Chip())
		for _, d := range s.Evidence.Devices() {
			v.Evidence += withDevice(string(d.Platform), d.Chip, d.Unjudged)
		}
	}
	return v
}

// String is the view as the cluster's part of a tree.
func (v sessionView) String() string {
	evidence := "not asked for (--fresh-evidence)"
	if v.Evidence != "" {
		evidence = v.Evidence + ", appraised just now"
	}
	return fmt.Sprintf("session       %s, until %s\n├─ opened by  unit %s\n├─ evidence   %s\n└─ closed by  unit %s\n",
		v.ID, v.Expires, v.Unit, evidence, strings.Join(v.Closed, "\n              unit "))
}
