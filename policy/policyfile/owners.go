package policyfile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// Owners are the people who sign policy, k of n.
type Owners struct {
	Quorum        int
	ApproveWithin time.Duration // how long a proposal may wait for its quorum
	Delay         time.Duration // how long loosening waits after the quorum
	Keys          []Owner       // in the order of the file
}

// Owner is one owner and their SSH key.
type Owner struct {
	Name string
	Key  ssh.PublicKey
	Age  string // age recipient of the owner's backup shares; empty where the SSH key itself is one
}

// Signer verifies a signature over a message and returns the name of the owner who made
// it.
func (o Owners) Signer(armored string, ns sshsig.Namespace, message []byte) (string, error) {
	key, err := sshsig.Verify(armored, ns, message)
	if err != nil {
		return "", err
	}
	for _, owner := range o.Keys {
		if bytes.Equal(owner.Key.Marshal(), key.Marshal()) {
			return owner.Name, nil
		}
	}
	return "", wire.Refuse(wire.NotOwner, "signature: key", key.Type(), "a key of "+strings.Join(o.Missing(nil), ", "))
}

// CheckQuorum refuses fewer owners than the quorum, with "quorum", and names the missing ones. The
// caller passes distinct names, whose signatures it has verified.
func (o Owners) CheckQuorum(signed []string) error {
	if o.Quorum > 0 && len(signed) >= o.Quorum {
		return nil
	}
	got := fmt.Sprintf("%d of %d (%s)", len(signed), o.Quorum, strings.Join(signed, ", "))
	want := fmt.Sprintf("%d more of %s", o.Quorum-len(signed), strings.Join(o.Missing(signed), ", "))
	return wire.Refuse(wire.NoQuorum, "policy: owners who signed", got, want)
}

// Missing returns the owners who are not in signed, in the order of the file.
func (o Owners) Missing(signed []string) []string {
	var names []string
	for _, owner := range o.Keys {
		if !slices.Contains(signed, owner.Name) {
			names = append(names, owner.Name)
		}
	}
	return names
}

// Digest identifies the owners, their keys and their quorum, for backups.
func (o Owners) Digest() attest.Digest {
	fields := [][]byte{{byte(o.Quorum >> 8), byte(o.Quorum)}}
	for _, owner := range o.Keys {
		fields = append(fields, []byte(owner.Name), owner.Key.Marshal(), []byte(owner.Age))
	}
	return wire.Hash(wire.LabelOwners, fields...)
}

func (d *Document) readOwners(root policytoml.Table) {
	t, ok := root.ReadTable("owners")
	if !ok {
		return
	}
	t.Require("quorum", "approve_within", "delay", "keys")
	d.Owners = Owners{
		ApproveWithin: t.ReadDuration("approve_within", time.Second, longestWait),
		Delay:         t.ReadDuration("delay", 0, longestWait),
	}
	for _, k := range t.ReadTables("keys") {
		d.Owners.Keys = append(d.Owners.Keys, readOwner(k))
	}
	d.Owners.Quorum = int(t.ReadNumber("quorum", 1, int64(len(d.Owners.Keys))))
	t.RejectUnknown()
}

func readOwner(t policytoml.Table) Owner {
	t.Require("name", "ssh")
	o := Owner{Name: t.ReadText("name", wantName, wire.ValidName), Key: readSSHKey(t)}
	o.Age = t.ReadText("age", "an age recipient: age1 and 58 characters, as age-keygen prints it", ageOK)
	t.RejectUnknown()
	return o
}

func readSSHKey(t policytoml.Table) (key ssh.PublicKey) {
	t.ReadText("ssh", "an ssh-ed25519, ecdsa-sha2-nistp256, -384, -521 key or its sk- form, as in a .pub file", func(s string) bool {
		var err error
		key, err = sshsig.ParseKeyLine(s)
		return err == nil
	})
	return key
}

// ageOK reports whether age can encrypt to a recipient. It refuses points of small order,
// because anyone can decrypt what is encrypted to them.
func ageOK(s string) bool {
	r, err := age.ParseX25519Recipient(s)
	if err != nil {
		return false
	}
	_, err = r.Wrap(make([]byte, 16))
	return err == nil
}
