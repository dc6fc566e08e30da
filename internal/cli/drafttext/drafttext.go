// Package drafttext writes the text of policies: the draft of a first policy from flags, one
// more task or release, and the successor of a policy with everything else unchanged.
//
// The text that it returns is parsed before it is used: package policy, not this one, says what
// a policy means.
package drafttext

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// Draft is what the draft of a first policy is written from.
type Draft struct {
	TrustDomain string
	Created     time.Time
	Quorum      int
	Owners      []Owner
	SoftRoots   []string // with one, the policy is for development
	TPMRoots    []string
	Machines    []string // which may hold the root: "any" alone, or chips
	Authority   []string // reference values as `cohort measure` prints them
	Task        Task
}

// Owner is an owner as a policy lists them: a name, and an SSH public key as one line.
type Owner struct{ Name, SSH string }

// Task is a task with one release.
type Task struct {
	Name, KeyMode, Release string
	Names                  []string
	References             []string
	Dynamic                bool
	Units                  int // 0 writes none, so that nothing bounds them
}

// PolicyText is the policy file.
func (d Draft) PolicyText() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Signed as it stands: reformatting this file, comments included, voids its signatures.")
	line("schema       = %q", policyfile.Schema)
	line("trust_domain = %q", d.TrustDomain)
	line("sequence     = 1")
	line(`previous     = ""`)
	line("created      = %s", d.Created.UTC().Format(time.RFC3339))
	if len(d.SoftRoots) > 0 {
		line("development  = true # soft roots stand below: nothing here is protected from its host")
	}
	line("\n[owners]\nquorum = %d\napprove_within = \"168h\"\ndelay = \"0s\"\nkeys = [", d.Quorum)
	for _, o := range d.Owners {
		line("  { name = %q, ssh = %q },", o.Name, o.SSH)
	}
	line("]")
	if len(d.SoftRoots) > 0 {
		line("\n[platform.soft]\nroots = %s", localtee.Quoted(d.SoftRoots))
	}
	if len(d.TPMRoots) > 0 {
		line("\n[platform.tpm]\nroots = %s", localtee.Quoted(d.TPMRoots))
	}
	line("\n[authority]\nroot = \"\" # filled in by `cohort policy sign --init`")
	line("machines = %s # may hold the root\nreference = [\n%s]", machineList(d.Machines), indented(d.Authority))
	d.Task.Write(line)
	return b.String()
}

// Write writes the task and its release, a line at a time.
func (t Task) Write(line func(string, ...any)) {
	if t.Name == "" {
		return
	}
	line("\n[task.%s]\nkey_mode = %q # shared: one certificate for all replicas; unit: one each, under one root", t.Name, t.KeyMode)
	line("names = %s\nlifetime = \"1h\"", localtee.Quoted(t.Names))
	if t.Units > 0 {
		line("units = %d # at most so many hold a place at once, in all releases: with the surge of a roll-out, and one crash", t.Units)
	}
	t.WriteRelease(line)
}

// WriteRelease writes the release alone.
func (t Task) WriteRelease(line func(string, ...any)) {
	line("\n[task.%s.release.%q]\nreference = [\n%s]", t.Name, t.Release, indented(t.References))
	if t.Dynamic {
		line("dynamic = true # the program loads code that is not measured: shared libraries, and an interpreter all that it runs")
	}
}

// Continuing is the text of a release that continues another of its task.
func (t Task) Continuing(before string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	t.WriteRelease(line)
	line("continues = %q", before)
	return b.String()
}

// AnyMachine accepts every machine of the authority's platforms.
const AnyMachine = "any"

// machineList is the list of machines as policy files write it.
func machineList(machines []string) string {
	if slices.Equal(machines, []string{AnyMachine}) {
		return localtee.TOMLString(AnyMachine)
	}
	return localtee.Quoted(machines)
}

// SoftMachines are the machines of development TEEs: the chip of each is the
// beginning of its root.
func SoftMachines(roots []string) ([]string, error) {
	var machines []string
	for _, text := range roots {
		root, err := wire.ParseDigest(text)
		if err != nil {
			return nil, fmt.Errorf("--soft-root: %w", err)
		}
		machines = append(machines, "chip:"+soft.ChipOf(root))
	}
	return machines, nil
}

func indented(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "  %s,\n", l)
	}
	return b.String()
}

// The lines of a policy that give its place in its history.
var (
	sequenceLine = regexp.MustCompile(`(?m)^sequence[ \t]*=[ \t]*[0-9]+`)
	previousLine = regexp.MustCompile(`(?m)^previous[ \t]*=[ \t]*"[^"]*"`)
	createdLine  = regexp.MustCompile(`(?m)^created[ \t]*=[ \t]*[0-9TZ:+-]+`)
)

// Successor is a policy file with its place moved one step on, everything else
// as it stands; a group that says nothing of its authority is given the trust
// domain's.
func Successor(raw []byte, created time.Time) ([]byte, error) {
	copied, err := policyfile.CopyAuthority(raw)
	if err != nil {
		return nil, err
	}
	doc, err := policyfile.Parse(copied)
	if err != nil {
		return nil, err
	}
	return Placed(string(copied), doc.Sequence, wire.Sum(raw), created)
}

// Placed is the text of a policy with the place of the one that follows another, which
// has a sequence number and a digest.
func Placed(text string, sequence uint64, before wire.Digest, created time.Time) ([]byte, error) {
	steps := []struct {
		at   *regexp.Regexp
		line string
	}{
		{sequenceLine, "sequence     = " + strconv.FormatUint(sequence+1, 10)},
		{previousLine, fmt.Sprintf("previous     = %q", before)},
		{createdLine, "created      = " + created.UTC().Format(time.RFC3339)},
	}
	for _, s := range steps {
		found := s.at.FindAllStringIndex(text, -1)
		if len(found) != 1 {
			return nil, frame.Usage("the policy has %d lines that begin with %q, want one", len(found), strings.Fields(s.line)[0])
		}
		text = text[:found[0][0]] + s.line + text[found[0][1]:]
	}
	next, err := policyfile.Parse([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("checking the next policy: %w", err)
	}
	return next.Source(), nil
}

// Owners reads NAME=FILE pairs.
func Owners(pairs []string) ([]Owner, error) {
	var lines []Owner
	for _, pair := range pairs {
		name, path, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, frame.Usage("--owner: got %q, want NAME=FILE", pair)
		}
		b, err := frame.ReadFile(path, sshkey.MaxKeyFile)
		if err != nil {
			return nil, err
		}
		key, err := sshsig.ParsePublicKey(b)
		if err != nil {
			return nil, frame.Usage("--owner %s: %s: %w", name, path, err)
		}
		lines = append(lines, Owner{name, strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")})
	}
	return lines, nil
}
