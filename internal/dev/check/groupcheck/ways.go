package groupcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
)

// bySuccessor is the takeover by a successor of the group: with the owners' own party, a quorum
// of one approval, and their program as a member of the asked role.
func bySuccessor(r *rivals) (takeover, error) {
	id, err := r.groupID()
	if err != nil {
		return takeover{}, err
	}
	return takeover{
		policies: []check.Edit{allEdits(r.joins(), check.After("[group."+r.Doc.Group+"]\n", fmt.Sprintf("continues = %q\n", id)))}, speaks: true,
		try: func(r *rivals, ctx context.Context) (string, error) {
			reason, err := r.startRefused(ctx, r.asked(), r.program)
			return "a successor with a party and a quorum of the owners': its program refused [" + reason + "]", err
		},
	}, nil
}

// byVictimsProgram is the takeover by a holder's own program, which the policy lists under the
// owners' party.
func byVictimsProgram(r *rivals) (takeover, error) {
	return takeover{
		policies: []check.Edit{allEdits(r.joins(), check.Replaced(r.memberOfParty(r.holder(), r.cluster.party(r.holder())), r.memberOfParty(r.holder(), "rival")))}, speaks: true,
		try: func(r *rivals, ctx context.Context) (string, error) {
			theirs, err := r.startRefused(ctx, r.holder(), r.Bin.Members[r.holder()])
			if err != nil {
				return "", err
			}
			n, err := r.member(r.holder(), r.Doc.Authority, r.Bin.Members[r.holder()], r.PartyKey(r.cluster.party(r.holder())))
			if err != nil {
				return "", err
			}
			owners, err := staysOut(ctx, r.Doc.TEE, n)
			return fmt.Sprintf("the %[1]s's program listed under a party of the owners': refused as theirs [%[2]s] and as the %[1]s's [%[3]s]", r.roleName(r.holder()), theirs, owners), err
		},
	}, nil
}

// byName is the takeover by a new group with the name of the group that the owners have ended.
func byName(r *rivals) (takeover, error) {
	var group string
	return takeover{
		policies: []check.Edit{
			func(text string) (rest string, err error) {
				rest, group, err = withoutGroup(text, r.Doc.Group)
				return rest, err
			},
			func(text string) (string, error) { return r.joins()(text + group) },
		}, speaks: true,
		try: func(r *rivals, ctx context.Context) (string, error) {
			reason, err := r.startRefused(ctx, r.asked(), r.program)
			return "the group ended, and its name used again: the owners' program refused [" + reason + "]", err
		},
	}, nil
}

// byAuthority is the takeover by an authority program of the owners. It can open the authority
// root, which is sealed to it too, but no root of the group.
func byAuthority(r *rivals) (takeover, error) {
	changed, err := check.AppendByte(r.Bin.Cohort, filepath.Join(r.dir, "rival"))
	if err != nil {
		return takeover{}, err
	}
	m, err := localtee.Measure("", []string{changed})
	if err != nil {
		return takeover{}, err
	}
	return takeover{
		policies: []check.Edit{check.After("# may hold the root\nreference = [\n", "  "+m.Reference+",\n")},
		try: func(r *rivals, ctx context.Context) (_ string, err error) {
			url, stop, err := r.authority(ctx, changed)
			if err != nil {
				return "", err
			}
			defer func() { err = errors.Join(err, stop()) }()
			n, err := r.member(r.other(), url, r.Bin.Members[r.other()], r.PartyKey(r.cluster.party(r.other())))
			if err != nil {
				return "", err
			}
			reason, err := staysOut(ctx, r.Doc.TEE, n)
			return "an authority program of the owners': it gives the " + r.roleName(r.other()) + "'s program nothing [" + reason + "]", err
		},
	}, nil
}

// authority starts a second authority on the cluster's store, with the given program.
func (r *rivals) authority(ctx context.Context, program string) (url string, stop func() error, err error) {
	list, err := dev.Addresses(0, 1)
	if err != nil {
		return "", nil, err
	}
	args := []string{"authority", "run", "--store", "sqlite:" + r.StoreFile(), "--listen", list[0], "--genesis-policy", r.GenesisFile()}
	sigs, err := filepath.Glob(r.GenesisFile() + ".*.sig")
	if err != nil {
		return "", nil, err
	}
	for _, path := range sigs {
		args = append(args, "--signature", path)
	}
	settings, err := localtee.CommandSettings(args)
	if err != nil {
		return "", nil, err
	}
	log, err := os.Create(filepath.Join(r.dir, "authority.log"))
	if err != nil {
		return "", nil, err
	}
	defer log.Close()
	p, err := localtee.Launch{Program: []string{program}, Settings: settings, Stdout: log, Stderr: log}.Start(ctx, r.Doc.TEE)
	if err != nil {
		return "", nil, err
	}
	url, stop = "https://"+list[0], func() error { return check.Ended(p) }
	ctx, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	pins := r.ClientPins()
	pins.Authorities = []string{url}
	for {
		c, err := authorityclient.Dial(ctx, r.App, pins)
		if err == nil {
			c.Close()
			return url, stop, nil
		}
		if retry.Sleep(ctx, check.StepTime/100) != nil {
			return "", nil, errors.Join(fmt.Errorf("the owners' authority: %w: %s", err, dev.LogTail(log.Name())), stop())
		}
	}
}

// byChip is the takeover by a machine of the owners, whose evidence they can forge: they run the
// asked role's own program there, with the key of its party.
func byChip(r *rivals) (takeover, error) {
	var other *dev.Daemon
	return takeover{
		policies: []check.Edit{func(text string) (_ string, err error) {
			state := filepath.Join(r.dir, "chip")
			if err := os.Mkdir(state, 0o700); err != nil {
				return "", err
			}
			if other, err = dev.StartDaemon(context.Background(), r.Bin.Cohort, state); err != nil {
				return "", err
			}
			return check.After("[platform.soft]\nroots = [", localtee.TOMLString(other.Root)+", ")(text)
		}},
		loosens: true,
		try: func(r *rivals, ctx context.Context) (_ string, err error) {
			defer func() { err = errors.Join(err, other.Stop()) }()
			n, err := r.member(r.asked(), r.Doc.Authority, r.Bin.Members[r.asked()], r.PartyKey(r.cluster.party(r.asked())))
			if err != nil {
				return "", err
			}
			reason, err := staysOut(ctx, other.Socket, n)
			return "a machine of the owners', whose evidence they can forge: the " + r.roleName(r.asked()) + "'s program there refused [" + reason + "]", err
		},
	}, nil
}

// allEdits returns an Edit that makes all changes in sequence.
func allEdits(changes ...check.Edit) check.Edit {
	return func(text string) (string, error) {
		var err error
		for _, change := range changes {
			if text, err = change(text); err != nil {
				return "", err
			}
		}
		return text, nil
	}
}

// joins returns an Edit that adds the rivals' party and program to the group, and sets the
// quorum to 1.
func (r *rivals) joins() check.Edit {
	keys, err := drafttext.Owners([]string{r.party.Name + "=" + r.party.Path + ".pub"})
	if err != nil {
		return func(string) (string, error) { return "", err }
	}
	parties := r.Bin.Example.Parties()
	last, members := fmt.Sprintf("  { name = %q, ssh = ", parties[len(parties)-1]), "members = [ "+r.memberOfParty(r.asked(), r.cluster.party(r.asked()))
	return allEdits(
		check.Replaced(last, fmt.Sprintf("  { name = %q, ssh = %q },\n%s", keys[0].Name, keys[0].SSH, last)),
		check.Replaced(fmt.Sprintf("quorum = %d # of the parties", len(parties)), "quorum = 1 # of the parties"),
		check.Replaced(members, members+`, { party = "rival", task = "rival", release = "1" }`),
		check.Appended(r.task),
	)
}

// startRefused starts a program in a role with the key of the rivals' party, and returns the
// reason for its refusal.
func (r *rivals) startRefused(ctx context.Context, role int, program []string) (string, error) {
	n, err := r.member(role, r.Doc.Authority, program, r.party.Path+".pub")
	if err != nil {
		return "", err
	}
	return staysOut(ctx, r.Doc.TEE, n)
}
