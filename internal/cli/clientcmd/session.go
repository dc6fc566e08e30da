package clientcmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/tree"
	"github.com/spf13/cobra"
)

// sessionFlags are the options of a session with a whole cluster.
type sessionFlags struct {
	gateway  authorityclient.Gateway
	wanted   bool
	evidence bool
	role     string // of a group; empty outside
}

func (s *sessionFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.wanted, "session", false, "through a gateway, in a session with the whole cluster, encrypted end to end")
	cmd.Flags().BoolVar(&s.evidence, "fresh-evidence", false, "with --session: the unit that opens it proves itself by evidence of this moment")
}

// needed reports whether flags are set that need --session. Without an authority the gateway is
// the way to trust as well.
func (s sessionFlags) needed(p authorityclient.Pins) bool {
	if len(p.Authorities) == 0 {
		s.gateway = authorityclient.Gateway{}
	}
	return s != sessionFlags{}
}

// openSession opens a session for the trust that a client has.
func (s sessionFlags) openSession(ctx context.Context, config client.OpenConfig) (*client.Channel, error) {
	config.Gateway, config.FreshEvidence = s.gateway.URL, s.evidence
	var err error
	if config.CA, err = s.gateway.CertPool(); err != nil {
		return nil, err
	}
	if config.Role = s.role; s.role != "" {
		return client.OpenGroup(ctx, config)
	}
	return client.Open(ctx, config)
}

// sessionView describes a session.
type sessionView struct {
	ID       string   `json:"id"`
	Expires  string   `json:"expires"`
	Unit     string   `json:"unit"`               // that opened it
	Identity string   `json:"identity"`           // of that unit, and so of all
	Evidence string   `json:"evidence,omitempty"` // fresh, as appraised
	Closed   []string `json:"closed,omitempty"`   // units that had it, as each proved when it closed it
}

func viewSession(s client.Session) sessionView {
	v := sessionView{ID: s.ID.String(), Expires: frame.RFC3339(s.Expires), Unit: s.Unit.UnitID().String(), Identity: s.Unit.ID().String()}
	if s.Evidence.Appraised() {
		v.Evidence = fmt.Sprintf("%s, chip %s", s.Evidence.Measurement(), s.Evidence.ChipID())
		for _, d := range s.Evidence.Devices() {
			v.Evidence += frame.WithDevice(string(d.Platform), d.Chip, d.NotVerified)
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
	root := tree.New("session       %s, until %s", v.ID, v.Expires)
	root.Add("opened by  unit %s", v.Unit)
	root.Add("evidence   %s", evidence)
	root.Add("closed by  unit %s", strings.Join(v.Closed, "\n              unit "))
	return root.Drawn()
}
