// Package groupcheck checks a group in a development cluster: that the authority issues no
// certificates before the parties approve, that the owners of the policy cannot take the group
// over, and that a withdrawal ends it.
//
// Files, each using those before it: cluster.go, forge.go, takeover.go, ways.go,
// withdraw.go, groupcheck.go.
package groupcheck

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// jointTime limits the request for a statistic over two tables.
const jointTime = time.Minute

// Run checks the cluster of a group. The last party must not have approved yet.
func Run(ctx context.Context, started *dev.Cluster) error {
	d := cluster{started}
	if holders := started.Bin.Example.Holders(); len(holders) < 2 || started.Bin.Example.Request.HandedOut == "" {
		return frame.Usage("checking group %s: got %d roles that are called and call none, want 2, and what they log (handed_out)", started.Doc.Group, len(holders))
	}
	as := func(run func(cluster, context.Context) (string, error)) func(context.Context, check.Checker) (string, error) {
		return func(ctx context.Context, _ check.Checker) (string, error) { return run(d, ctx) }
	}
	return check.ForCluster(d.Cluster).Run(ctx, []check.Case{
		{Name: "group/quorum", Run: as(cluster.quorum)},
		{Name: "group/statistic", Run: as(cluster.sameStatistic)},
		{Name: "group/stranger", Run: as(cluster.stranger)},
		{Name: "group/role", Run: as(cluster.wrongRole)},
		{Name: "group/listener", Run: as(cluster.listener)},
		{Name: "group/takeover-by-owners/successor", Run: d.takeover(bySuccessor)},
		{Name: "group/takeover-by-owners/program", Run: d.takeover(byVictimsProgram)},
		{Name: "group/takeover-by-owners/name", Run: d.takeover(byName)},
		{Name: "group/takeover-by-owners/authority", Run: d.takeover(byAuthority)},
		{Name: "group/takeover-by-owners/chip", Run: d.takeover(byChip)},
		{Name: "group/withdrawal", Run: as(cluster.unitIgnoresWithdrawal)},
		{Name: "group/withdraw", Run: as(cluster.withdrawAndApprove)},
	})
}

// quorum checks that while one party has not approved, no unit receives a certificate and no
// client trusts the group, and that both succeed after its approval.
func (d cluster) quorum(ctx context.Context) (string, error) {
	parties, last := len(d.Bin.Example.Parties()), "last"
	if ordinals := []string{"second", "third", "fourth", "fifth"}; parties-2 >= 0 && parties-2 < len(ordinals) {
		last = ordinals[parties-2]
	}
	refused, err := d.waits(ctx, 0, d.names()...)
	if err != nil {
		return "", err
	}
	for _, u := range d.Doc.Units {
		if dev.Ready(ctx, u.Health) == nil {
			return "", fmt.Errorf("unit %s is ready before all parties approved", u.Address)
		}
	}
	began := d.App.Now()
	if err := d.Agree(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d of %d approve: %d requests refused [%s], no certificate; the %s approves: %d units up after %v",
		parties-1, parties, refused, wire.NoQuorum, last, len(d.Doc.Units), since(d, began)), nil
}

func since(d cluster, began time.Time) time.Duration {
	return d.App.Now().Sub(began).Round(time.Millisecond)
}

// waits returns an error unless, after a sequence number of the log, a unit of each role is
// refused without a quorum and no unit receives a certificate, and a client does not trust the
// group. It returns the number of refusals.
func (d cluster) waits(ctx context.Context, after int64, roles ...string) (int, error) {
	if _, err := d.GroupTrust(ctx); !errors.Is(err, wire.NoQuorum) {
		return 0, fmt.Errorf("client of the group: got %v, want a refusal [%s]", err, wire.NoQuorum)
	}
	ctx, cancel := context.WithTimeout(ctx, check.RefusalTime)
	defer cancel()
	for {
		entries, err := d.groupLog(ctx, after)
		if err != nil {
			return 0, err
		}
		refused := map[string]bool{}
		for _, e := range entries {
			if e.Kind == "issued" {
				return 0, fmt.Errorf("unit %s got a certificate of role %s without the quorum", e.Unit, e.Role)
			}
			refused[e.Role] = refused[e.Role] || e.Reason == wire.NoQuorum
		}
		missing := slices.IndexFunc(roles, func(role string) bool { return !refused[role] })
		if missing < 0 {
			return len(entries), nil
		}
		if retry.Sleep(ctx, 50*time.Millisecond) != nil {
			return 0, fmt.Errorf("no unit of role %s was refused [%s]", roles[missing], wire.NoQuorum)
		}
	}
}

// groupLog returns the authority's log entries about the group after a sequence number, newest
// first.
func (d cluster) groupLog(ctx context.Context, after int64) (found []api.LogEntry, err error) {
	a, err := authorityclient.Dial(ctx, d.App, d.ClientPins())
	if err != nil {
		return nil, err
	}
	defer a.Close()
	log, err := a.IssuanceLog(ctx, api.LogQuery{Limit: 100})
	for _, e := range log.Entries {
		if e.Group == d.Doc.Group && e.Sequence > after {
			found = append(found, e)
		}
	}
	return found, err
}

// sameStatistic checks that the asked role's response is equal to the result that the data's
// program computes directly.
func (d cluster) sameStatistic(ctx context.Context) (string, error) {
	began := d.App.Now()
	if _, err := d.statistic(ctx); err != nil { // the programs may still be reading their tables
		return "", err
	}
	first := since(d, began)
	began = d.App.Now()
	joint, err := d.statistic(ctx)
	if err != nil {
		return "", err
	}
	took := since(d, began)
	began = d.App.Now()
	pooled, err := d.Bin.Pooled(ctx)
	if err == nil && !bytes.Equal(joint, pooled) {
		err = fmt.Errorf("got %s, want %s as on the pooled tables", joint, pooled)
	}
	return fmt.Sprintf("%s rows a side: equal to the plain computation; in the group %v, at first %v; plain, reading both tables, %v",
		dev.RowsOf(d.Bin.Tables), took, first, since(d, began)), err
}

// statistic sends the example's request in a session with the asked role, and returns the
// response's content.
func (d cluster) statistic(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, jointTime)
	defer cancel()
	t, err := d.GroupTrust(ctx)
	if err != nil {
		return nil, err
	}
	ch, err := client.OpenGroup(ctx, client.OpenConfig{Trust: t, Role: d.roleName(d.asked()), Gateway: d.Doc.Gateway, FreshEvidence: true})
	if err != nil {
		return nil, err
	}
	defer ch.Close(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.Doc.ServerName+d.Bin.Example.Request.Path, nil)
	if err != nil {
		return nil, err
	}
	response, err := ch.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(io.LimitReader(response.Body, dev.MaxDev))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("asking the %s: got %s: %s", d.roleName(d.asked()), response.Status, b)
	}
	return b, err
}

// stranger checks that a program of no party receives no certificate, and that the holder serves
// neither a client without a certificate nor one with a self-signed certificate.
func (d cluster) stranger(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-stranger-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	changed, err := check.AppendByte(d.Bin.Program[0], dir)
	if err != nil {
		return "", err
	}
	stranger, err := d.newMember(dir, d.asked(), append([]string{changed}, d.Bin.Program[1:]...))
	if err != nil {
		return "", err
	}
	if err := stranger.MustBeRefused(ctx, d.Doc.TEE, wire.NotMeasured); err != nil {
		return "", err
	}
	return fmt.Sprintf("not enrolled [%s]; the %s responds %d without a certificate and an alert to one made at home",
		wire.NotMeasured, d.roleName(d.holder()), http.StatusForbidden), d.holderIsClosed(ctx)
}

// holderIsClosed returns an error unless the holder refuses clients outside the group.
func (d cluster) holderIsClosed(ctx context.Context) error {
	holder := d.Doc.Units[d.holder()].Address
	made, err := selfMade()
	if err != nil {
		return err
	}
	config := &tls.Config{InsecureSkipVerify: true, ServerName: d.Doc.ServerName, MinVersion: tls.VersionTLS13}
	if status, err := check.GetStatus(ctx, holder, config); err != nil || status != http.StatusForbidden {
		return fmt.Errorf("%s, asked without a certificate: got %d, %v, want %d", d.roleName(d.holder()), status, err, http.StatusForbidden)
	}
	config.Certificates = []tls.Certificate{made}
	if err := turnedAway(ctx, holder, config); !frame.IsAlert(err) {
		return fmt.Errorf("%s, asked with a certificate made at home: got %v, want a TLS alert", d.roleName(d.holder()), err)
	}
	return nil
}

// selfMade returns a self-signed certificate.
func selfMade() (c tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// newMember prepares an additional unit of a role, with a program and further flags.
func (d cluster) newMember(dir string, role int, program []string, flags ...string) (check.Newcomer, error) {
	list, err := dev.Addresses(0, 2)
	if err != nil {
		return check.Newcomer{}, err
	}
	u := dev.Unit{Address: list[0], Health: "http://" + list[1]}
	settings, err := localtee.CommandSettings(append(d.MemberArgs(role, u), flags...))
	if err != nil {
		return check.Newcomer{}, err
	}
	log, err := os.Create(filepath.Join(dir, "unit.log"))
	if err != nil {
		return check.Newcomer{}, err
	}
	return check.Newcomer{Launch: localtee.Launch{Agent: d.Bin.Cohort, Program: program, Settings: settings, Stdout: log, Stderr: log}, Listen: u.Address, Health: u.Health, Log: log}, nil
}

// wrongRole checks that a program is refused in a role of which it is not a member, and that a
// unit is refused if it is configured to call a role that its own role may not call.
func (d cluster) wrongRole(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "cohort-role-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	other, err := d.newMember(dir, d.other(), d.Bin.Members[d.holder()])
	if err != nil {
		return "", err
	}
	if err := other.MustBeRefused(ctx, d.Doc.TEE, wire.WrongRole); err != nil {
		return "", fmt.Errorf("the %s's program as %s: %w", d.roleName(d.holder()), d.roleName(d.other()), err)
	}
	calling, err := d.newMember(dir, d.holder(), d.Bin.Members[d.holder()], "--peer", d.roleName(d.other())+"="+d.Doc.Units[d.other()].Address)
	if err != nil {
		return "", err
	}
	defer calling.Log.Close()
	if err := check.MustEndRefused(ctx, d.Doc.TEE, calling.Launch, wire.NotAllowed); err != nil {
		return "", fmt.Errorf("a %s that calls the %s: %w", d.roleName(d.holder()), d.roleName(d.other()), err)
	}
	return fmt.Sprintf("the %[1]s's program as %[2]s is refused [%[3]s]; a %[1]s that would call the %[2]s [%[4]s]", d.roleName(d.holder()), d.roleName(d.other()), wire.WrongRole, wire.NotAllowed), nil
}

// listener checks that a holder's listener itself refuses the other holder, and serves a role
// that may call it. The caller's agent is not involved.
func (d cluster) listener(ctx context.Context) (string, error) {
	called, status := d.Doc.Units[d.other()].Address, 0
	err := d.asRole(ctx, d.holder(), func(config *tls.Config) error {
		if err := turnedAway(ctx, called, config); !frame.IsAlert(err) {
			return fmt.Errorf("%s, called by a %s: got %v, want a TLS alert", d.roleName(d.other()), d.roleName(d.holder()), err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	err = d.asRole(ctx, d.asked(), func(config *tls.Config) (err error) { status, err = check.GetStatus(ctx, called, config); return err })
	return fmt.Sprintf("the %s ends the handshake of a %s by an alert, and responds to a %s: %d", d.roleName(d.other()), d.roleName(d.holder()), d.roleName(d.asked()), status), err
}

// asRole starts an additional unit of a role, and calls call with a TLS configuration that has
// the unit's certificate and verifies no peer.
func (d cluster) asRole(ctx context.Context, role int, call func(*tls.Config) error) (err error) {
	dir, err := os.MkdirTemp("", "cohort-caller-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	caller, err := d.newMember(dir, role, d.Bin.Members[role], "--cert-dir", dir, "--cert-dir-on-disk")
	if err != nil {
		return err
	}
	defer caller.Log.Close()
	p, err := caller.Launch.Start(ctx, d.Doc.TEE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, check.Ended(p)) }()
	if err := check.ComesUp(ctx, caller); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return err
	}
	return call(&tls.Config{
		InsecureSkipVerify: true, ServerName: d.Doc.ServerName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
	})
}

// turnedAway connects to a unit and returns the error with which the unit ends the connection.
// In TLS 1.3 a unit verifies the client's certificate after the client's handshake is complete.
// The client sends no data: unread data at the unit would cause a TCP reset, which discards the
// alert.
func turnedAway(ctx context.Context, address string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, check.StepTime)
	defer cancel()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, err = c.Read(make([]byte, 1))
	return err
}

// withdrawAndApprove checks that after a party's withdrawal no unit receives a certificate and
// no client trusts the group, and that both succeed again after the party approves again.
func (d cluster) withdrawAndApprove(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-withdraw-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	parties, err := d.Parties()
	if err != nil {
		return "", err
	}
	party := parties[len(parties)-1]
	before, err := d.withdraw(ctx, party)
	if err != nil {
		return "", err
	}
	role := d.Bin.Example.OfParty(party.Name)
	late, err := d.newMember(dir, role, d.Bin.Members[role])
	if err != nil {
		return "", err
	}
	defer late.Log.Close()
	p, err := late.Launch.Start(ctx, d.Doc.TEE)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, check.Ended(p)) }()
	if _, err := d.waits(ctx, before, d.roleName(role)); err != nil {
		return "", err
	}
	began := d.App.Now()
	if err := d.SubmitStatement(ctx, party, sshsig.ForApprove); err != nil {
		return "", err
	}
	if err := check.ComesUp(ctx, late); err != nil {
		return "", err
	}
	took := since(d, began)
	// A withdrawal is a cut-off, so the other units renew: until then their certificates are
	// refused.
	waiting, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	for _, err = d.statistic(ctx); err != nil && retry.Sleep(waiting, 50*time.Millisecond) == nil; {
		_, err = d.statistic(ctx)
	}
	if err == nil {
		_, err = d.sameStatistic(ctx)
	}
	return fmt.Sprintf("%s withdraws: no certificate, no trust [%s]; it approves again: a unit that waited is up after %v, the statistic is equal",
		party.Name, wire.NoQuorum, took), err
}

// withdraw submits a party's withdrawal, and returns the newest sequence number of the log after
// it.
func (d cluster) withdraw(ctx context.Context, party sshkey.Pair) (int64, error) {
	if err := d.SubmitStatement(ctx, party, sshsig.ForWithdraw); err != nil {
		return 0, err
	}
	before, err := d.groupLog(ctx, 0)
	if err == nil && len(before) == 0 {
		err = errors.New("the log names no unit of the group")
	}
	if err != nil {
		return 0, err
	}
	return before[0].Sequence, nil
}
