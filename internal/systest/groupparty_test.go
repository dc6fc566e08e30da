package systest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// TestTrustedParty: a client that trusts one party follows a group only while that party
// approves it, even when a quorum of other parties approves.
func TestTrustedParty(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	group := four
	group.Quorum = 1
	parties := c.FormGroup(group)
	c.ApproveGroup("trial", parties)
	trust := func(keys ...attest.Digest) error {
		_, err := client.FetchTrust(t.Context(), client.TrustConfig{
			Authorities: []string{c.URL()}, Genesis: c.Genesis, Group: "trial", PartyKeys: keys, Verifier: attesttest.Verifier(),
		})
		return err
	}
	holder, scorer := sshsig.KeyDigest(parties["holder"].PublicKey()), sshsig.KeyDigest(parties["scorer"].PublicKey())
	check := func(when, who string, got error, want wire.Reason) {
		t.Helper()
		if want == "" && got != nil || want != "" && !errors.Is(got, want) {
			t.Errorf("%s, trusting %s: got %v, want reason %q", when, who, got, want)
		}
	}
	check("all approve", "no party", trust(), "")
	check("all approve", "a party", trust(holder), "")
	check("all approve", "its old and its new key", trust(attest.Digest{1}, holder), "")
	check("all approve", "a party of another group", trust(attest.Digest{1}), wire.NoParty)
	if _, err := c.SubmitStatement("trial", "holder", parties["holder"], Withdraw); err != nil {
		t.Fatal(err)
	}
	check("one withdrew", "no party", trust(), "")
	check("one withdrew", "another party", trust(scorer), "")
	check("one withdrew", "that party", trust(holder), wire.Withdrawn)
	check("one withdrew", "both", trust(scorer, holder), wire.Withdrawn)
	for name, config := range map[string]client.TrustConfig{
		"keys without a group": {Task: "scorer", PartyKeys: []attest.Digest{holder}},
		"a zero key":           {Group: "trial", PartyKeys: []attest.Digest{{}}},
	} {
		config.Authorities, config.Genesis, config.Verifier = []string{c.URL()}, c.Genesis, attesttest.Verifier()
		if _, err := client.FetchTrust(t.Context(), config); !errors.Is(err, wire.BadRequest) {
			t.Errorf("%s: got %v, want reason %q", name, err, wire.BadRequest)
		}
	}
}

// TestReceiptOfAGroup: a client that trusts one party accepts a receipt of a group's unit
// only where that party approves the group.
func TestReceiptOfAGroup(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	parties := c.FormGroup(four)
	c.ApproveGroup("trial", parties)
	c.StartManager()
	attended(t, c.StartMember("trial", "holder", "holder 1", hello("holder")))
	trust := c.GroupTrust("trial")
	ch, err := client.OpenGroup(t.Context(), client.OpenConfig{Trust: trust, Role: "holder", Gateway: "https://" + c.manager.listen, CA: c.manager.ca, Receipts: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close(context.Background())
	var record client.Record
	if _, err := fetched(client.WithRecord(t.Context(), &record), ch, "https://trial/"); err != nil {
		t.Fatal(err)
	}
	id := c.Approved().GroupByName("trial").ID()
	for _, tt := range []struct {
		name   string
		keys   []attest.Digest
		roster attest.Digest
		want   wire.Reason
	}{
		{"no party", nil, attest.Digest{}, ""},
		{"a party that approves", []attest.Digest{sshsig.KeyDigest(parties["scorer"].PublicKey())}, attest.Digest{}, ""},
		{"a party of another group", []attest.Digest{{1}}, attest.Digest{}, wire.NoParty},
		{"exactly its roster", nil, id, ""},
		{"another roster", nil, attest.Digest{1}, wire.WrongIdentity},
	} {
		by := unitauth.Trust{Policy: trust.Policy(), Root: trust.AuthorityRoot(), Approvers: tt.keys}
		pin := unitauth.Pin{Genesis: c.Genesis, ID: tt.roster, Group: "trial", Role: "holder"}
		_, err := unitauth.VerifyReceipt(record, by, unitauth.ReceiptExpect{Pin: pin, At: time.Now()})
		if tt.want == "" && err != nil || tt.want != "" && !errors.Is(err, tt.want) {
			t.Errorf("trusting %s: got %v, want reason %q", tt.name, err, tt.want)
		}
	}
}

// TestPinnedRoster: a client that pins one roster accepts no unit of the next roster,
// although the parties approve it and the session belongs to the group. A client that
// follows the group by name continues.
func TestPinnedRoster(t *testing.T) {
	waits(t)
	c := newFour(t, policyfile.Shared)
	parties := c.FormGroup(four)
	c.ApproveGroup("trial", parties)
	holder := c.StartMember("trial", "holder", "holder 1", hello("holder"))
	former := c.Approved().GroupByName("trial").ID()
	open := func(id attest.Digest) *client.Channel {
		trust, err := client.FetchTrust(t.Context(), client.TrustConfig{
			Authorities: []string{c.URL()}, Genesis: c.Genesis, Group: "trial", ID: id, Verifier: attesttest.Verifier(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return inRole(t, "holder", client.OpenConfig{Trust: trust, Gateway: astray(t, holder, holder)})
	}
	pinned, follows := open(former), open(attest.Digest{})
	for name, ch := range map[string]*client.Channel{"pinned": pinned, "by name": follows} {
		if got := answerer(t, ch); got != "holder" {
			t.Fatalf("%s, before the roster changes: got a response of %q", name, got)
		}
	}
	c.Adopt("[group.trial.role]\n", "continues = \""+former.String()+"\"\n[group.trial.role]\n", `calls = ["broker", "holder"]`, `calls = ["holder"]`)
	c.ApproveGroup("trial", parties)
	next := c.Approved().GroupByName("trial").ID()
	testworld.Within(t, 10*time.Second, "the unit to have the new identity", func() bool { return holder.Unit.Identity().ID == next })
	testworld.Within(t, 10*time.Second, "a response to the client that follows the group", func() bool { return answerer(t, follows) == "holder" })
	testworld.Within(t, 10*time.Second, "the pinned client to have the step", func() bool { return pinned.Trust().Policy().PolicyHead() == c.Approved().PolicyHead() })
	for range 3 {
		if got := answerer(t, pinned); got != "" {
			t.Errorf("pinned to the former roster: got a response of %q", got)
		}
	}
}
