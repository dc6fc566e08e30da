package cli

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// draft is what the draft of a first policy is written from.
type draft struct {
	trustDomain string
	created     time.Time
	quorum      int
	owners      []ownerLine
	softRoots   []string // with one, the policy is for development
	tpmRoots    []string
	machines    []string // which may hold the root: "any" alone, or chips
	authority   []string // reference values as `cohort measure` prints them
	task        draftTask
}

type ownerLine struct{ name, ssh string }

type draftTask struct {
	name, keyMode, release string
	names                  []string
	references             []string
	dynamic                bool
	units                  int // 0 writes none, so that nothing bounds them
}

// text is the policy file.
func (d draft) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Signed as it stands: reformatting this file, comments included, voids its signatures.")
	line("schema       = %q", policy.Schema)
	line("trust_domain = %q", d.trustDomain)
	line("sequence     = 1")
	line(`previous     = ""`)
	line("created      = %s", d.created.UTC().Format(time.RFC3339))
	if len(d.softRoots) > 0 {
		line("development  = true # soft roots stand below: nothing here is protected from its host")
	}
	line("\n[owners]\nquorum = %d\napprove_within = \"168h\"\ndelay = \"0s\"\nkeys = [", d.quorum)
	for _, o := range d.owners {
		line("  { name = %q, ssh = %q },", o.name, o.ssh)
	}
	line("]")
	if len(d.softRoots) > 0 {
		line("\n[platform.soft]\nroots = %s", quoted(d.softRoots))
	}
	if len(d.tpmRoots) > 0 {
		line("\n[platform.tpm]\nroots = %s", quoted(d.tpmRoots))
	}
	line("\n[authority]\nroot = \"\" # filled in by `cohort policy sign --init`")
	line("machines = %s # may hold the root\nreference = [\n%s]", machineList(d.machines), indented(d.authority))
	d.task.write(line)
	return b.String()
}

func (t draftTask) write(line func(string, ...any)) {
	if t.name == "" {
		return
	}
	line("\n[task.%s]\nkey_mode = %q # shared: one certificate for all replicas; unit: one each, under one root", t.name, t.keyMode)
	line("names = %s\nlifetime = \"1h\"", quoted(t.names))
	if t.units > 0 {
		line("units = %d # at most so many hold a place at once, in all releases: with the surge of a roll-out, and one crash", t.units)
	}
	t.writeRelease(line)
}

func (t draftTask) writeRelease(line func(string, ...any)) {
	line("\n[task.%s.release.%q]\nreference = [\n%s]", t.name, t.release, indented(t.references))
	if t.dynamic {
		line("dynamic = true # the program loads code that is not measured: shared libraries, and an interpreter all that it runs")
	}
}

// continuing is the text of a release that continues another of its task.
func (t draftTask) continuing(before string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	t.writeRelease(line)
	line("continues = %q", before)
	return b.String()
}

// anyMachine accepts every machine of the authority's platforms.
const anyMachine = "any"

// machineList is the list of machines as policy files write it.
func machineList(machines []string) string {
	if slices.Equal(machines, []string{anyMachine}) {
		return tomlString(anyMachine)
	}
	return quoted(machines)
}

// softMachines are the machines of development TEEs: the chip of each is the
// beginning of its root.
func softMachines(roots []string) ([]string, error) {
	var machines []string
	for _, text := range roots {
		root, err := wire.ParseDigest(text)
		if err != nil {
			return nil, fmt.Errorf("--soft-root: %w", err)
		}
		machines = append(machines, "chip:"+soft.Chip(root))
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

// quoted is a TOML list of strings.
func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = tomlString(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// tomlString is a TOML basic string. Go's quoting is the same but for escapes
// of bytes and control characters that TOML spells otherwise.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, "\\u%04x", c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// reference is the reference value of a measured program and its arguments, as
// policy files write it.
func reference(p attest.Platform, m measurement, args []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{ platform = %q", p)
	if m.Agent != "" {
		fmt.Fprintf(&b, ", agent = %q", m.Agent)
	}
	fmt.Fprintf(&b, ", program = %q", m.Program)
	if len(args) > 0 {
		b.WriteString(", args = " + quoted(args))
	}
	b.WriteString(" }")
	return b.String()
}

// The lines of a policy that say where it stands in its history.
var (
	sequenceLine = regexp.MustCompile(`(?m)^sequence[ \t]*=[ \t]*[0-9]+`)
	previousLine = regexp.MustCompile(`(?m)^previous[ \t]*=[ \t]*"[^"]*"`)
	createdLine  = regexp.MustCompile(`(?m)^created[ \t]*=[ \t]*[0-9TZ:+-]+`)
)

// successor is a policy file with its place moved one step on, everything else
// as it stands; a group that says nothing of its authority is given the trust
// domain's.
func successor(raw []byte, created time.Time) ([]byte, error) {
	copied, err := policy.CopyAuthority(raw)
	if err != nil {
		return nil, err
	}
	doc, err := policy.Parse(copied)
	if err != nil {
		return nil, err
	}
	return placed(string(copied), doc.Sequence, wire.Sum(raw), created)
}

// placed is the text of a policy with the place of the one that follows another, which
// has a sequence number and a digest.
func placed(text string, sequence uint64, before wire.Digest, created time.Time) ([]byte, error) {
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
			return nil, usage("the policy has %d lines that begin with %q, want one", len(found), strings.Fields(s.line)[0])
		}
		text = text[:found[0][0]] + s.line + text[found[0][1]:]
	}
	next, err := policy.Parse([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("checking the next policy: %w", err)
	}
	return next.Raw(), nil
}
