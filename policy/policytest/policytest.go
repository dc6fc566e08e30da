// Package policytest holds the policies, keys and vectors that the tests of package
// policy and of the packages below it share. It imports none of them, so that their
// own tests can import it.
package policytest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Digest is the digest whose text is one digit 64 times.
func Digest(digit string) wire.Digest {
	d, err := wire.ParseDigest(strings.Repeat(digit, 64))
	if err != nil {
		panic(err)
	}
	return d
}

// Fixed is an ed25519 key that is the same in every run.
func Fixed(name string) ssh.Signer {
	seed := wire.Sum([]byte("test owner " + name))
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return signer
}

func KeyLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// Refused demands exactly this reason.
func Refused(t testing.TB, err error, want wire.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want reason %q", want)
	}
	if got := wire.ReasonOf(err); got != want {
		t.Fatalf("got reason %q (%v), want %q", got, err, want)
	}
}

// Token is an emulated hardware key: what the chip signs is flags, counter and
// two digests.
type Token struct {
	key         ssh.PublicKey
	sign        func(data []byte) []byte // the blob of the inner signature
	Flags       byte
	application string
}

func NewToken(algorithm string) *Token { return NewTokenFor(algorithm, "ssh:") }

func NewTokenFor(algorithm, application string) *Token {
	k := &Token{Flags: 1, application: application}
	var blob []byte
	switch algorithm {
	case ssh.KeyAlgoSKED25519:
		public, private, _ := ed25519.GenerateKey(rand.Reader)
		k.sign = func(data []byte) []byte { return ed25519.Sign(private, data) }
		blob = ssh.Marshal(struct {
			Type        string
			Key         []byte
			Application string
		}{algorithm, public, application})
	case ssh.KeyAlgoSKECDSA256:
		private, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		inner, _ := ssh.NewSignerFromKey(private)
		k.sign = func(data []byte) []byte {
			sig, _ := inner.Sign(rand.Reader, data)
			return sig.Blob
		}
		point, _ := private.PublicKey.Bytes()
		blob = ssh.Marshal(struct {
			Type, Curve string
			Key         []byte
			Application string
		}{algorithm, "nistp256", point, application})
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		panic(err)
	}
	k.key = key
	return k
}

func (k *Token) PublicKey() ssh.PublicKey { return k.key }

func (k *Token) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, message := wire.Sum([]byte(k.application)), wire.Sum(data)
	rest := []byte{k.Flags, 0, 0, 0, 9}
	signed := bytes.Join([][]byte{app[:], rest, message[:]}, nil)
	return &ssh.Signature{Format: k.key.Type(), Blob: k.sign(signed), Rest: rest}, nil
}

func NewHouse() *House {
	return &House{map[string]ssh.Signer{"ana": Fixed("ana"), "ben": Fixed("ben"), "eva": NewToken(ssh.KeyAlgoSKECDSA256)}}
}

// Text is the good policy with the owners' keys, after edits "old → new".
func (h *House) Text(t testing.TB, edits ...string) []byte {
	t.Helper()
	s := Good
	for i := 0; i < len(edits); i += 2 {
		if strings.Count(s, edits[i]) == 0 {
			t.Fatalf("the good policy has no %q", edits[i])
		}
		s = strings.ReplaceAll(s, edits[i], edits[i+1])
	}
	for name, signer := range h.Owners {
		s = strings.ReplaceAll(s, strings.ToUpper(name)+`"`, KeyLine(signer.PublicKey())+`"`)
	}
	return []byte(s)
}

// NewGroupHouse is a house whose policies have parties.
func NewGroupHouse() *House {
	h := NewHouse()
	for _, party := range []string{"east", "north", "south"} {
		h.Owners[party] = Fixed(party)
	}
	return h
}

// Grouped are edits that add the group to the good policy, after edits.
func Grouped(edits ...string) []string {
	return append([]string{"oneoff = true\n", "oneoff = true\n" + Trial}, edits...)
}

// IronText is the hardware policy after edits "old", "new". In it R1, C1 and so
// on stand for bytes that all are that digit.
func IronText(t testing.TB, edits ...string) []byte {
	t.Helper()
	text := Iron
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the policy has no %q", edits[i])
		}
		text = strings.Replace(text, edits[i], edits[i+1], 1)
	}
	return []byte(Spell(text))
}

// Spell writes out the key of ana and the digests R1, C1 and so on.
func Spell(text string) string {
	pairs := []string{"ANA", KeyLine(Fixed("ana").PublicKey())}
	for letter, size := range map[string]int{"R": 32, "S": 32, "H": 32, "C": 64, "G": 64, "K": 48, "M": 48} {
		for _, digit := range []string{"0", "1", "2", "3", "4"} {
			pairs = append(pairs, `:`+letter+digit+`"`, `:`+strings.Repeat(digit, 2*size)+`"`, `"`+letter+digit+`"`, `"`+strings.Repeat(digit, 2*size)+`"`)
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// Alike are so many bytes that all are 16 times the digit and the digit.
func Alike(digit byte, size int) []byte { return slices.Repeat([]byte{digit<<4 | digit}, size) }

// GPUText is the hardware policy with GPUs, of which its release, which is retired,
// demands two.
func GPUText(t testing.TB, edits ...string) []byte {
	t.Helper()
	text := strings.Replace(Iron, "[measured.signer]", GPUTable+"[measured.signer]", 1)
	text = strings.Replace(text, "[task.keys.release.\"1\"]\n", "[task.keys.release.\"1\"]\nretired = true\ndevices = { nvidia-gpu = 2 }\n", 1)
	text = strings.Replace(text, "\n[owners]", "max_silence = \"10m\"\n\n[owners]", 1)
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the policy has no %q", edits[i])
		}
		text = strings.Replace(text, edits[i], edits[i+1], 1)
	}
	return []byte(Spell(text))
}

// TPMPolicy has a task on the TPM. PCR n holds the digits n1 throughout; 11 to 14
// byte; 11 to 13 were never extended.
func TPMPolicy(edits ...string) string {
	var boot []string
	for _, name := range tpmrules.Rules.RegisterNames()[:14] {
		number := strings.TrimPrefix(name, "pcr")
		value := strings.Repeat("0", 64)
		if len(number) == 1 {
			value = strings.Repeat(number+"1", 32)
		}
		boot = append(boot, fmt.Sprintf("%s = \"sha256:%s\"", number, value))
	}
	digest := func(s string) string { return wire.Sum([]byte(s)).String() }
	text := Iron[:strings.Index(Iron, "[platform.snp]")]
	text = Spell(text)
	text += fmt.Sprintf("[platform.tpm]\nroots = [%q]\ncut_chips = [%q]\n", digest("root"), digest("chip"))
	text += fmt.Sprintf("[authority]\nroot = %q\nmachines = \"any\"\nreference = [ { platform = \"tpm\", boot = { BOOT }, program = %q } ]\n", digest("authority"), digest("agent"))
	text += fmt.Sprintf("[task.keys]\nkey_mode = \"unit\"\nnames = [\"keys.clinic.example\"]\n[task.keys.release.1]\nreference = [ { platform = \"tpm\", boot = { BOOT }, agent = %q, program = %q, args = [\"-v\"] } ]\n", digest("agent"), digest("keys"))
	text = strings.ReplaceAll(text, "BOOT", strings.Join(boot, ", "))
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			panic("no " + edits[i])
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	return text
}

// Header reads the "name: value" lines of a vector; a name may come again.
func Header(t testing.TB, text string) map[string][]string {
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

func ReadVector(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{Vectors}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func WriteVector(t testing.TB, text string, path ...string) {
	t.Helper()
	name := filepath.Join(append([]string{Vectors}, path...)...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func Files(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(Vectors, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("got no vectors %s: %v", pattern, err)
	}
	return names
}

// Verdict is what a vector's expect line says of an error.
func Verdict(err error) string {
	if err == nil {
		return "accepted"
	}
	return string(wire.ReasonOf(err))
}

const Vectors = "testdata/vectors"

// Update writes the vectors anew, with new keys. Do it only when the format
// changes: a vector that another implementation holds must stay.
var Update = flag.Bool("update", false, "write testdata/vectors")

// Good is a policy that uses every key there is. Tests break it in one place.
const Good = `# Policy of a clinic.
schema       = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence     = 1
previous     = ""
created      = 2026-11-22T09:00:00Z   # UTC
development  = true

[owners]
quorum = 2
approve_within = "168h"
delay = "1h"
keys = [
  { name = "ana", ssh = "ANA" },
  { name = "ben", ssh = "BEN" },
  { name = "eva", ssh = "EVA" },
]

[platform.soft]
roots = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
debug = true

[measured.agent-1]
sha256 = "2222222222222222222222222222222222222222222222222222222222222222"

[authority]
root = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
machines = ["chip:0123456789abcdef"]
reference = [ { platform = "soft", program = "@agent-1" } ]

[task.keys]
key_mode = "unit"
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "sha256:4444444444444444444444444444444444444444444444444444444444444444", any = ["agent", "args"] } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example", "score.clinic.example"]
lifetime = "30m"
units = 50
calls = ["keys"]
[task.scoring.release."2026.10"]
reference = [ { platform = "soft", agent = "@agent-1", program = "sha256:5555555555555555555555555555555555555555555555555555555555555555" } ]
[task.scoring.release."2026.11"]
reference = [
  { platform = "soft", agent = "@agent-1", program = "sha256:6666666666666666666666666666666666666666666666666666666666666666", args = ["--model", "m.json"] },
  { platform = "soft", agent = "@agent-1", program = "sha256:7777777777777777777777777777777777777777777777777777777777777777" },
]
continues = "2026.10"
dynamic = true
env = { LANG = "C" }
oneoff = true
`

var Start = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// House is the three owners of the good policy: two with files, one with a
// hardware key.
type House struct {
	Owners map[string]ssh.Signer
}

// Trial is a group of the good policy's tasks.
const Trial = `
[group.trial]
key_mode = "shared"
quorum = 2
until = 2026-12-20T00:00:00Z
names = ["trial.clinic.example"]
authority = { machines = ["chip:0123456789abcdef"], platform = { soft = { roots = [ "sha256:1111111111111111111111111111111111111111111111111111111111111111"] } }, reference = [ { platform = "soft", program = "@agent-1" } ] }
party = [ { name = "east", ssh = "EAST" }, { name = "north", ssh = "NORTH" }, { name = "south", ssh = "SOUTH" } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ] }
scorer = { members = [ { party = "east", task = "scoring", release = "2026.10" }, { party = "south", task = "scoring", release = "2026.11" } ], calls = ["holder"] }
`

// Iron is a policy of hardware alone that uses every key of its platforms.
const Iron = `schema = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence = 1
previous = ""
created = 2026-11-22T09:00:00Z

[owners]
quorum = 1
approve_within = "168h"
delay = "1h"
keys = [ { name = "ana", ssh = "ANA" } ]

[platform.snp]
roots = ["sha256:R1"]
crl = "if-present"
checked_within = "72h"
chips = ["C1", "c3c3c3c3c3c3c3c3"]
cut_chips = ["C2"]
id_keys = ["sha384:K1"]
smt = true
migration = true
provisional_firmware = true
vmpl = 2
hidden_chips = false
platform_info = { ALIAS_CHECK_COMPLETE = "any", ECC_EN = true, SMT_EN = false }
guest_policy = { abi = "1.55", SINGLE_SOCKET = true, CXL_ALLOW = "any" }
mitigations = { launch = [0, 63], current = [1] }
` + Generations + `
[platform.tdx]
roots = ["sha256:R2"]
debug = true
crl = "required"
chips = "any"
cut_chips = ["0123456789abcdef0123456789abcdef"]
cut_models = ["90c06f000000"]
statuses = ["SWHardeningNeeded", "OutOfDate"]
advisories = ["INTEL-SA-00615"]
min_evaluation = 17
min_tcb_date = 2025-05-14T00:00:00Z
attributes = { SEPT_VE_DISABLE = "any", PERFMON = false, LASS = true }
xfam = { AMX_TILEDATA = false }
servicetd = ["M0", "M1", "unsaid"]
owner = [ { mrowner = "M1", mrownerconfig = "M2" } ]
migration = true

[platform.sgx]
roots = ["sha256:R2"]
chips = ["00000000000000000000000000000001"]
min_isvsvn = 4

[platform.nitro]
roots = ["sha256:R3"]
max_age = "5m"

[measured.signer]
sha256 = "S1"

[authority]
root = "sha256:R4"
machines = ["chip:C1"]
reference = [ { platform = "snp", measurement = "sha384:M1", host-data = "H1" } ]

[task.keys]
key_mode = "unit"
[task.keys.release."1"]
reference = [
  { platform = "snp", measurement = "sha384:M2", any = ["host-data"] },
  { platform = "tdx", mrtd = "sha384:M1", mrconfigid = "M3", rtmr0 = "sha384:M2", rtmr1 = "sha384:M3", any = ["rtmr2", "rtmr3"] },
  { platform = "sgx", any = ["mrenclave"], mrsigner = "@signer", isvprodid = 258, configid = "G1" },
  { platform = "nitro", pcr0 = "sha384:M1", pcr1 = "sha384:M2", pcr2 = "sha384:M3", pcr8 = "sha384:M0" },
]
`

// Generations is the CPU generations of iron.
const Generations = `[platform.snp.generation.Milan]
committed = { bootloader = 3, tee = 0, snp = 8, microcode = 115 }
[platform.snp.generation.Turin]
committed = { fmc = 1, bootloader = 2, tee = 3, snp = 4, microcode = 5 }
reported = { fmc = 6, bootloader = 7, tee = 8, snp = 9, microcode = 10 }
launch = { fmc = 11, bootloader = 12, tee = 13, snp = 14, microcode = 255 }
`

const GPUTable = `[platform.nvidia-gpu]
roots = ["sha256:R1"]
crl = "if-present"
checked_within = "48h"
models = ["GH100", "GB100"]
chips = ["sha256:R2"]
cut_chips = ["sha256:R3"]
drivers = ["550.90.07", "575.32"]
vbios = "any"
modes = ["SPT", "unstated"]
measurements = "any"
mode = "development"

`

// CustodyOf is the key "authority" of the trial.
func CustodyOf(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(Trial) {
		if text, ok := strings.CutPrefix(line, "authority = "); ok {
			return strings.TrimSuffix(text, "\n")
		}
	}
	t.Fatal("the trial has no authority")
	return ""
}

// AgeRecipient is an owner's, as age-keygen prints it.
const AgeRecipient = "age1u0wkk094v9av0rv6rhj5vrzxvnhldvh4uz9uxk34lj6zpq7ra3kswev88c"
