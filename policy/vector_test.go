package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// update writes the vectors anew, with new keys. Do it only when the format
// changes: a vector that another implementation holds must stay.
var update = flag.Bool("update", false, "write testdata/vectors")

const vectors = "testdata/vectors"

// header reads the "name: value" lines of a vector; a name may come again.
func header(t testing.TB, text string) map[string][]string {
	t.Helper()
	fields := map[string][]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			t.Fatalf("got line %q, want name: value", line)
		}
		fields[name] = append(fields[name], value)
	}
	return fields
}

func readVector(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{vectors}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeVector(t testing.TB, text string, path ...string) {
	t.Helper()
	name := filepath.Join(append([]string{vectors}, path...)...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(vectors, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("got no vectors %s: %v", pattern, err)
	}
	return names
}

// verdict is what a vector's expect line says of an error.
func verdict(err error) string {
	if err == nil {
		return "accepted"
	}
	return string(wire.ReasonOf(err))
}

// TestSignatureVectors reads files of a header, an empty line and an armored
// signature over the file "message".
func TestSignatureVectors(t *testing.T) {
	if *update {
		writeSignatureVectors(t)
	}
	message := readVector(t, "signature", "message")
	for _, path := range files(t, "signature/*.txt") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			head, armored, _ := strings.Cut(readVector(t, "signature", filepath.Base(path)), "\n\n")
			fields := header(t, head)
			key, err := Verify(armored, Namespace(fields["namespace"][0]), []byte(message))
			if got, want := verdict(err), fields["expect"][0]; got != want {
				t.Fatalf("got %s (%v), want %s", got, err, want)
			}
			if err == nil && keyLine(key) != fields["key"][0] {
				t.Errorf("got key %s, want %s", keyLine(key), fields["key"][0])
			}
		})
	}
}

func writeSignatureVectors(t *testing.T) {
	writeVector(t, "m", "signature", "message")
	write := func(name, note string, signer ssh.Signer, armored string) {
		_, err := Verify(armored, ForPolicy, []byte("m"))
		writeVector(t, fmt.Sprintf("expect: %s\nnote: %s\nnamespace: %s\nkey: %s\n\n%s", verdict(err), note, ForPolicy, keyLine(signer.PublicKey()), armored), "signature", name+".txt")
	}
	skEd, skEC, ana := newToken(ssh.KeyAlgoSKED25519), newToken(ssh.KeyAlgoSKECDSA256), fixed("ana")
	for name, signer := range map[string]ssh.Signer{
		"ed25519": ana, "ecdsa-256": ecKey(t, "256"), "ecdsa-384": ecKey(t, "384"), "ecdsa-521": ecKey(t, "521"), "sk-ed25519": skEd, "sk-ecdsa-256": skEC,
	} {
		write(name, "each kind of key that owners may have", signer, forge(t, signer, nil))
	}
	write("text-after", "one encoding: nothing follows the armor", ana, forge(t, ana, nil)+"\n")
	write("namespace", "made for a cancel statement", ana, forge(t, ana, func(e *envelope) { e.Namespace = string(ForCancel) }))
	write("sha256", "sha512 only", ana, forge(t, ana, func(e *envelope) { e.Hash = "sha256" }))
	write("other-key", "the key of somebody who did not sign", fixed("ben"), forge(t, ana, func(e *envelope) { e.PublicKey = fixed("ben").PublicKey().Marshal() }))
	rsa, foreign := rsaKey(t), newTokenFor(ssh.KeyAlgoSKED25519, "ssh:work")
	write("rsa", "no RSA", rsa, forge(t, rsa, nil))
	write("sk-application", "a hardware key made for another application than ssh:", foreign, forge(t, foreign, nil))
	write("small-order", "a point of order 1, under which anybody signs", ana, forge(t, ana, func(e *envelope) {
		e.PublicKey = pointKey(t, ssh.KeyAlgoED25519, smallPoints(t)[2]).Marshal()
		e.Signature = ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: append([]byte{1}, make([]byte, 63)...)})
	}))
	skEd.flags = 0
	write("sk-presence", "a hardware key that nobody touched", skEd, forge(t, skEd, nil))
}

// TestPolicyVectors reads policy files whose first line says what to make of
// them.
func TestPolicyVectors(t *testing.T) {
	if *update {
		writePolicyVectors(t)
	}
	for _, path := range files(t, "policy/*.toml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text := readVector(t, "policy", filepath.Base(path))
			first, _, _ := strings.Cut(text, "\n")
			d, err := Parse([]byte(text))
			if got := "# expect: " + parseVerdict(d, err); got != first {
				t.Errorf("got %s\nwant %s", got, first)
			}
		})
	}
}

func parseVerdict(d *Document, err error) string {
	var faults Faults
	if errors.As(err, &faults) {
		return fmt.Sprintf("policy, %s: %s", faults[0].Path, faults[0].Rule)
	}
	text := "accepted"
	for _, ref := range d.references() {
		text += fmt.Sprintf(", %s %s", ref.Path, wire.Sum(ref.Bytes()))
	}
	return text
}

func writePolicyVectors(t *testing.T) {
	h := newHouse()
	write := func(name string, raw []byte) {
		// The comment is part of the file but changes no verdict, only the lines.
		d, err := Parse(append([]byte("#\n"), raw...))
		writeVector(t, "# expect: "+parseVerdict(d, err)+"\n"+string(raw), "policy", strings.ReplaceAll(name, " ", "-")+".toml")
	}
	write("good", h.text(t))
	for _, r := range parseRefusals {
		switch r.name {
		case "schema", "genesis with previous", "later policy without previous", "quorum over the owners", "key twice", "soft without development",
			"reference value with value and any", "equal measurements in two tasks", "task without key mode", "life too long", "name of two tasks",
			"name of the authority", "continues itself", "unknown key", "override of direction", "owner with a key of small order":
			write(r.name, h.text(t, r.old, r.new))
		}
	}
	write("hardware", ironText(t))
	for _, r := range ironRefusals {
		switch r.name {
		case "soft beside hardware", "floor without a component", "Revoked accepted", "pcr0 of zeros, as in debug", "chip id in capitals":
			write(strings.ReplaceAll(r.name, ",", ""), ironText(t, r.old, r.new))
		}
	}
	write("devices", gpuText(t))
	for _, r := range gpuRefusals {
		switch r.name {
		case "gpu without measurements", "a reference value of a device", "a device without its table":
			write(r.name, gpuText(t, r.old, r.new))
		}
	}
}

// TestHistoryVectors reads vectors that name the files of each step.
func TestHistoryVectors(t *testing.T) {
	if *update {
		writeHistoryVectors(t)
	}
	for _, path := range files(t, "history/*.txt") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			fields := header(t, readVector(t, "history", filepath.Base(path)))
			pin, steps := readHistory(t, fields)
			a, err := Replay(pin, steps)
			if got, want := verdict(err), fields["expect"][0]; got != want {
				t.Fatalf("got %s (%v), want %s", got, err, want)
			}
			if err == nil && a.Head().String() != fields["head"][0] {
				t.Errorf("got head %s, want %s", a.Head(), fields["head"][0])
			}
		})
	}
}

func readHistory(t testing.TB, fields map[string][]string) (attest.Digest, []Step) {
	t.Helper()
	pin, err := wire.ParseDigest(fields["pin"][0])
	if err != nil {
		t.Fatal(err)
	}
	var steps []Step
	for _, line := range fields["step"] {
		names := strings.Fields(line)
		step := Step{Policy: []byte(readVector(t, "history", names[0]))}
		for _, sig := range names[1:] {
			step.Signatures = append(step.Signatures, readVector(t, "history", sig))
		}
		steps = append(steps, step)
	}
	return pin, steps
}

func writeHistoryVectors(t *testing.T) {
	h := newHouse()
	genesis := h.found(t)
	second := h.next(t, genesis, `lifetime = "30m"`, `lifetime = "20m"`)
	texts := map[string][]byte{"1": genesis.Document().Raw(), "2": second}
	for n, raw := range texts {
		writeVector(t, string(raw), "history", n+".toml")
		for _, name := range []string{"ana", "ben", "eva"} {
			writeVector(t, h.sign(t, ForPolicy, raw, name)[0], "history", n+"."+name+".sig")
		}
	}
	pin := genesis.Genesis().String()
	for _, v := range []struct{ name, note, pin, steps string }{
		{"one-step", "the genesis alone", pin, "1.toml 1.ana.sig 1.ben.sig"},
		{"two-steps", "another pair of owners each time", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ben.sig 2.eva.sig"},
		{"other-pin", "the history of somebody else", wire.Sum(second).String(), "1.toml 1.ana.sig 1.ben.sig"},
		{"too-few", "one owner of two", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig"},
		{"one-twice", "one owner, twice", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig 2.ana.sig"},
		{"other-version", "a signature over another version", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig 1.ben.sig"},
		{"again", "the same step again", pin, "1.toml 1.ana.sig 1.ben.sig|2.toml 2.ana.sig 2.ben.sig|2.toml 2.ana.sig 2.ben.sig"},
	} {
		text := fmt.Sprintf("note: %s\npin: %s\nstep: %s\n", v.note, v.pin, strings.ReplaceAll(v.steps, "|", "\nstep: "))
		a, err := Replay(readHistory(t, header(t, text)))
		text = "expect: " + verdict(err) + "\n" + text
		if err == nil {
			text += "head: " + a.Head().String() + "\n"
		}
		writeVector(t, text, "history", v.name+".txt")
	}
}
