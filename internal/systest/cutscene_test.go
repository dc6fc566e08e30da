package systest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// twinName is the response of a unit that is cut off and continues to run.
const twinName = "twin"

// cutScene is a cluster whose tests cut units off, one after the other.
type cutScene struct {
	*Cluster
	t       *testing.T
	managed bool
	adder   *Replica // calls units with the role holder
	holder  *Replica // is called by units with the role adder
	cut     map[string]string
}

// newCutScene starts a cluster of a task and a group, with one or two honest units of each.
func newCutScene(t *testing.T, mode policyfile.KeyMode, managed bool) *cutScene {
	t.Helper()
	task := func(name string) Task {
		return Task{Name: name, KeyMode: mode, Life: time.Hour, Programs: []string{name + " 1"}}
	}
	s := &cutScene{Cluster: New(t, task("adder"), task("holder"), task("scoring")), t: t, managed: managed, cut: map[string]string{}}
	s.ApproveGroup("trial", s.FormGroup(Group{
		Name: "trial", KeyMode: mode, Life: time.Hour, Quorum: 2, Roles: []string{"adder", "holder"}, Calls: map[string][]string{"adder": {"holder"}},
	}))
	if managed {
		s.StartManager()
	}
	honest := []*Replica{s.Start("scoring", "scoring 1", hello("honest")), s.Start("scoring", "scoring 1", hello("honest"))}
	if managed {
		attended(t, honest...)
	}
	s.adder, s.holder = s.StartMember("trial", "adder", "adder 1", hello("adder")), s.StartMember("trial", "holder", "holder 1", hello("holder"))
	return s
}

// twins are the units that a test cuts off: one of the task scoring, and one of each role
// of the group. Once the link is parted, nothing reaches them from the authority, so they
// continue under the old policy until their certificates end.
type twins struct {
	scoring, adder, holder *Replica
	link                   *link
}

func (s *cutScene) twins() twins { return s.twinsOf(hello(twinName)) }

// twinsOf starts twins that serve the handler.
func (s *cutScene) twinsOf(h http.Handler) twins {
	s.t.Helper()
	t := twins{link: newLink(s.t, s.addr)}
	start := func(config unit.Config) *Replica {
		config.Authorities = []string{"https://" + t.link.address}
		return s.StartWith(config, h)
	}
	t.scoring = start(s.UnitConfig("scoring", "scoring 1"))
	t.adder, t.holder = start(s.MemberConfig("trial", "adder", "adder 1")), start(s.MemberConfig("trial", "holder", "holder 1"))
	if s.managed {
		attended(s.t, t.scoring)
	}
	return t
}

func (t twins) kill() {
	for _, r := range []*Replica{t.scoring, t.adder, t.holder} {
		r.Kill()
	}
}

// calls returns a transport by which an adder calls holders.
func calls(t *testing.T, adder *Replica) *http.Transport {
	t.Helper()
	config := testworld.Must(adder.Unit.PeerTLS("trial", "holder"))
	return &http.Transport{DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return adder.Unit.Dial(ctx, config, address)
	}}
}

// adoptCut puts a policy in force that cuts the twins off. It drops earlier cuts, which no
// longer matter: those units have ended.
func (s *cutScene) adoptCut(t twins) {
	s.t.Helper()
	var edits []string
	for task, unit := range map[string]*Replica{"adder": t.adder, "holder": t.holder, "scoring": t.scoring} {
		line := fmt.Sprintf("cut_units = [%q]\n", unit.Unit.ID())
		if s.cut[task] == "" {
			edits = append(edits, "[task."+task+"]\n", "[task."+task+"]\n"+line)
		} else {
			edits = append(edits, s.cut[task], line)
		}
		s.cut[task] = line
	}
	s.Adopt(edits...)
}
