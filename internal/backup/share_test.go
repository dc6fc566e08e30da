package backup

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// update writes the vectors anew, with new keys. Do it only when the format
// changes.
var update = flag.Bool("update", false, "write testdata/vectors")

var at = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// house is a root secret and a policy of three owners: two with ed25519 keys,
// one with an ECDSA key and an age recipient.
type house struct {
	secret   identity.Secret
	approved policy.Approved
	ids      map[string]age.Identity
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{secret: identity.NewSecret(), ids: map[string]age.Identity{}}
	w, ben := testworld.New(t, "ana", "eva"), testworld.Must(age.GenerateX25519Identity())
	w.Keys["ben"] = testworld.Key{Signer: testworld.Must(ssh.NewSignerFromKey(testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))))}
	h.ids["ben"] = ben
	for _, name := range w.Owners {
		h.ids[name] = testworld.Must(agessh.NewEd25519Identity(w.Keys[name].Private))
	}
	text := w.PolicyText(testworld.Must(identity.Derive(h.secret)).RootDigest().String(), "", "quorum = 1", "quorum = 2", "OWNERS",
		fmt.Sprintf("%s, { name = \"ben\", ssh = %q, age = %q }, %s", w.OwnerRows("ana"), w.Keys["ben"].AuthorizedKey(), ben.Recipient(), w.OwnerRows("eva")))
	h.approved = testworld.Must(policy.Genesis(wire.Sum([]byte(text)), w.SignPolicy(text, "ana", "ben")))
	return h
}

func (h *house) split() ([]Share, error) { return Split(h.secret, h.approved.Draft(), h.approved, at) }

func must2[T, U any](v T, u U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return v, u
}

// opened is what an owner's key opens.
func (h *house) opened(t testing.TB, s Share) []byte {
	t.Helper()
	return testworld.Must(io.ReadAll(testworld.Must(age.Decrypt(bytes.NewReader(s.Sealed), h.ids[s.Owner]))))
}

// unlocked is a share for a TEE's key, sealed as [Unlock] does it.
func (h *house) unlocked(t testing.TB, s Share, plain []byte, key hpke.PublicKey) Share {
	t.Helper()
	enc, sender := must2(hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), s.hpkeInfo()))
	s.Schema, s.Encapsulated, s.Sealed = SchemaUnlocked, enc, testworld.Must(sender.Seal(nil, plain))
	return s
}

// TestSplitCombine restores the secret from every two shares, and not from
// shares that were changed before they were sealed.
func TestSplitCombine(t *testing.T) {
	h := newHouse(t)
	shares := testworld.Must(Split(h.secret, h.approved.Draft(), h.approved, at))
	key := testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	var open []Share
	for _, s := range shares {
		open = append(open, h.unlocked(t, s, h.opened(t, s), key.PublicKey()))
	}
	for _, some := range [][]Share{{open[0], open[1]}, {open[2], open[0]}, {open[1], open[2]}, open} {
		got, header, err := Combine(some, Keys{Private: key})
		if err == nil && header.Draft != h.approved.Draft() {
			t.Errorf("got draft %v, want the one that was split with the secret", header.Draft)
		}
		if err != nil || !bytes.Equal(got.Expose(), h.secret.Expose()) {
			t.Errorf("got another secret, %v", err)
		}
	}
	other := h.opened(t, shares[1])
	other[len(other)-1] ^= 1
	_, _, err := Combine([]Share{open[0], h.unlocked(t, shares[1], other, key.PublicKey())}, Keys{Private: key})
	testworld.Refused(t, err, wire.BadShare)
	if err == nil || !strings.Contains(err.Error(), "share of ben") {
		t.Errorf("got %v, want an error that names ben", err)
	}
}

// TestForgedTogether is a backup of another secret whose shares, commitments and
// header all agree: only the root tells.
func TestForgedTogether(t *testing.T) {
	h := newHouse(t)
	key := testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	var open []Share
	for _, s := range testworld.Must(Split(identity.NewSecret(), h.approved.Draft(), h.approved, at)) {
		plain := h.opened(t, s)
		fields := testworld.Must(wire.Unframe(wire.LabelShare, plain, 3))
		s.Root = h.approved.Document().Authority.Root
		open = append(open, h.unlocked(t, s, s.encodePlaintext(fields[2]), key.PublicKey()))
	}
	_, _, err := Combine(open, Keys{Private: key})
	testworld.Refused(t, err, wire.WrongRoot)
}

// TestNoRecipient names the owner to whom nothing can be sealed, and makes no
// share.
func TestNoRecipient(t *testing.T) {
	h := newHouse(t)
	doc := *h.approved.Document()
	for i := range doc.Owners.Keys {
		doc.Owners.Keys[i].Age = ""
	}
	shares, err := Split(h.secret, h.approved.Draft(), h.approved, at)
	testworld.Refused(t, err, wire.NoRecipient)
	if err == nil || !strings.Contains(err.Error(), "ben (ecdsa-sha2-nistp256)") || len(shares) > 0 {
		t.Errorf("got %d shares, %v, want none and ben named", len(shares), err)
	}
}

// TestParseRefusals changes one thing of a good share each.
func TestParseRefusals(t *testing.T) {
	good := testworld.Must(newHouse(t).split())[0]
	if _, err := Parse(good.Bytes()); err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name  string
		spoil func(*Share)
	}{
		{"another schema", func(s *Share) { s.Schema = "cohort/share/v2" }},
		{"unlocked without enc", func(s *Share) { s.Schema = SchemaUnlocked }},
		{"sealed to the owner, with a credential", func(s *Share) { s.Credential = []byte("c") }},
		{"a credential that is too long", func(s *Share) {
			s.Schema, s.Encapsulated, s.Credential = SchemaUnlocked, []byte("enc"), make([]byte, maxCredential+1)
		}},
		{"a short id", func(s *Share) { s.ID = s.ID[2:] }},
		{"an id in upper case", func(s *Share) { s.ID = strings.ToUpper("ab" + s.ID[2:]) }},
		{"half seconds", func(s *Share) { s.Created = s.Created.Add(time.Second / 2) }},
		{"no owners", func(s *Share) { s.Count = 0 }},
		{"too many owners", func(s *Share) { s.Count = 256 }},
		{"no commitments", func(s *Share) { s.Commitments = nil }},
		{"more commitments than owners", func(s *Share) { s.Commitments = make([][]byte, 4) }},
		{"number 0", func(s *Share) { s.Number = 0 }},
		{"a number beyond", func(s *Share) { s.Number = 4 }},
		{"no owner", func(s *Share) { s.Owner = "" }},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			s := good
			r.spoil(&s)
			_, err := Parse(s.Bytes())
			testworld.Refused(t, err, wire.Malformed)
		})
	}
	for _, b := range [][]byte{nil, []byte("{}"), bytes.ReplaceAll(good.Bytes(), []byte("  "), []byte(" ")), append(good.Bytes(), '\n')} {
		_, err := Parse(b)
		testworld.Refused(t, err, wire.Malformed)
	}
	_, err := Parse(make([]byte, wire.MaxShare+1))
	testworld.Refused(t, err, wire.TooLarge)
}

// TestCommitmentRefusals are points of another encoding.
func TestCommitmentRefusals(t *testing.T) {
	good := testworld.Must(newHouse(t).split())[0]
	identityPoint := make([]byte, commitmentSize)
	long := testworld.Must(testworld.Must(good.parseCommitments())[0].MarshalBinary())
	for _, bad := range [][]byte{nil, {0}, identityPoint, long, good.Commitments[0][:48]} {
		s := good
		s.Commitments = [][]byte{bad, good.Commitments[1]}
		_, err := s.parseCommitments()
		testworld.Refused(t, err, wire.Malformed)
	}
}

const vector = "testdata/vectors/share.json"

// TestVector reads a share that must stay readable: its header's digest stands
// beside it.
func TestVector(t *testing.T) {
	if *update {
		writeVector(t)
	}
	b := testworld.Must(os.ReadFile(vector))
	s, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	id := testworld.Must(age.ParseX25519Identity(strings.TrimSpace(string(testworld.Must(os.ReadFile("testdata/vectors/ben.key"))))))
	plain := testworld.Must(io.ReadAll(testworld.Must(age.Decrypt(bytes.NewReader(s.Sealed), id))))
	got := fmt.Sprintf("digest %s\nplain %x\n", s.Digest(), plain)
	if want := string(testworld.Must(os.ReadFile("testdata/vectors/share.expect"))); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if err := s.verifyCommitments(plain); err != nil {
		t.Errorf("verifying the vector: %v", err)
	}
}

func writeVector(t *testing.T) {
	h := newHouse(t)
	s := testworld.Must(Split(h.secret, h.approved.Draft(), h.approved, at))[1]
	for name, content := range map[string]string{
		"share.json": string(s.Bytes()), "ben.key": h.ids["ben"].(*age.X25519Identity).String() + "\n",
		"share.expect": fmt.Sprintf("digest %s\nplain %x\n", s.Digest(), h.opened(t, s)),
	} {
		if err := errors.Join(os.MkdirAll("testdata/vectors", 0o755), os.WriteFile("testdata/vectors/"+name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzParse holds that whatever is read is written back as the same bytes, and
// that what was read can be judged without a panic.
func FuzzParse(f *testing.F) {
	f.Add(testworld.Must(os.ReadFile(vector)))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			if wire.ReasonOf(err) == wire.Internal {
				t.Errorf("got %v, want a typed refusal", err)
			}
			return
		}
		if !bytes.Equal(s.Bytes(), b) {
			t.Error("got other bytes back")
		}
		if _, err := s.parseCommitments(); err == nil {
			_ = s.verifyCommitments(b)
		}
		_ = s.Digest()
	})
}

// FuzzOpen reads what an owner's key opened: anybody can seal anything to him.
func FuzzOpen(f *testing.F) {
	s := testworld.Must(Parse(testworld.Must(os.ReadFile(vector))))
	f.Add(s.encodePlaintext(make([]byte, valueSize)))
	f.Fuzz(func(t *testing.T, plain []byte) {
		if value, err := s.parsePlaintext(plain); err == nil && !bytes.Equal(s.encodePlaintext(testworld.Must(value.MarshalBinary())), plain) {
			t.Error("got other bytes back")
		}
	})
}

// FuzzParseRequest reads requests of anybody.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"schema":"cohort/restore-request/v1","hpke_key":"","sealed_key":"","evidence":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseRequest(b); err != nil && wire.ReasonOf(err) == wire.Internal {
			t.Errorf("got %v, want a typed refusal", err)
		}
	})
}
