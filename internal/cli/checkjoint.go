package cli

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

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// jointTime is how long a statistic over two tables may take.
const jointTime = time.Minute

// checkGroup tells the stories of a group, whose last party has not approved yet.
func (d *dev) checkGroup(ctx context.Context) error {
	as := func(run func(*dev, context.Context) (string, error)) func(checker, context.Context) (string, error) {
		return func(_ checker, ctx context.Context) (string, error) { return run(d, ctx) }
	}
	return checkerOf(d).tell(ctx, []story{
		{"group/quorum", as((*dev).quorumStory)},
		{"group/statistic", as((*dev).statisticStory)},
		{"group/stranger", as((*dev).strangerStory)},
		{"group/role", as((*dev).roleStory)},
		{"group/listener", as((*dev).listenerStory)},
		{"group/takeover-by-owners/successor", d.takeoverStory(bySuccessor)},
		{"group/takeover-by-owners/program", d.takeoverStory(byVictimsProgram)},
		{"group/takeover-by-owners/name", d.takeoverStory(byName)},
		{"group/takeover-by-owners/authority", d.takeoverStory(byAuthority)},
		{"group/takeover-by-owners/chip", d.takeoverStory(byChip)},
		{"group/withdrawal", as((*dev).withdrawalStory)},
		{"group/withdraw", as((*dev).withdrawStory)},
	})
}

// quorumStory: while one of three has not approved, no unit gets a certificate and
// nobody trusts the group; then all do.
func (d *dev) quorumStory(ctx context.Context) (string, error) {
	refused, err := d.waits(ctx, 0, "bank", "insurer", "joiner")
	if err != nil {
		return "", err
	}
	for _, u := range d.cluster.Units {
		if ready(ctx, u.Health) == nil {
			return "", fmt.Errorf("unit %s is ready before all parties approved", u.Address)
		}
	}
	began := d.app.now()
	if err := d.agree(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("2 of 3 approve: %d requests refused [%s], no certificate; the third approves: 3 units up after %v",
		refused, wire.NoQuorum, since(d, began)), nil
}

func since(d *dev, began time.Time) time.Duration {
	return d.app.now().Sub(began).Round(time.Millisecond)
}

// waits demands that a unit of each role is refused for want of a quorum and none
// gets a certificate, all after a place of the log, and that no client trusts the
// group. It says how many were refused.
func (d *dev) waits(ctx context.Context, after int64, roles ...string) (int, error) {
	if _, err := d.groupTrust(ctx); !errors.Is(err, wire.NoQuorum) {
		return 0, fmt.Errorf("client of the group: got %v, want a refusal [%s]", err, wire.NoQuorum)
	}
	ctx, cancel := context.WithTimeout(ctx, refusalTime)
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
		if !pause(ctx, 50*time.Millisecond) {
			return 0, fmt.Errorf("no unit of role %s was refused [%s]", roles[missing], wire.NoQuorum)
		}
	}
}

// groupLog is what the authority logged of the group after a place, newest first.
func (d *dev) groupLog(ctx context.Context, after int64) (found []api.LogEntry, err error) {
	a, err := d.app.authority(ctx, d.pins())
	if err != nil {
		return nil, err
	}
	defer a.Close()
	log, err := a.IssuanceLog(ctx, api.LogQuery{Limit: 100})
	for _, e := range log.Entries {
		if e.Group == devJoint && e.Sequence > after {
			found = append(found, e)
		}
	}
	return found, err
}

// statisticStory: what the joiner says is what one computes who holds both tables.
func (d *dev) statisticStory(ctx context.Context) (string, error) {
	began := d.app.now()
	if _, err := d.statistic(ctx); err != nil { // the programs may still read their tables
		return "", err
	}
	first := since(d, began)
	began = d.app.now()
	joint, err := d.statistic(ctx)
	if err != nil {
		return "", err
	}
	took := since(d, began)
	began = d.app.now()
	pooled, err := d.bin.pooled(ctx)
	if err == nil && !bytes.Equal(joint, pooled) {
		err = fmt.Errorf("got %s, want %s as on the pooled tables", joint, pooled)
	}
	return fmt.Sprintf("%s rows a side: equal to the plain computation; in the group %v, at first %v; plain, reading both tables, %v",
		rowsOf(d.bin.tables), took, first, since(d, began)), err
}

// statistic asks the joiner in a session with its role.
func (d *dev) statistic(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, jointTime)
	defer cancel()
	t, err := d.groupTrust(ctx)
	if err != nil {
		return nil, err
	}
	ch, err := client.OpenGroup(ctx, client.OpenConfig{Trust: t, Role: jointMembers[joiner].role, Gateway: d.cluster.Gateway, FreshEvidence: true})
	if err != nil {
		return nil, err
	}
	defer ch.Close(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.cluster.ServerName+"/statistic", nil)
	if err != nil {
		return nil, err
	}
	answer, err := ch.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxDev))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("asking the joiner: got %s: %s", answer.Status, b)
	}
	return b, err
}

// strangerStory: a program that no company brought gets no certificate, and the
// bank gives nothing to who has none or has made one.
func (d *dev) strangerStory(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-stranger-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	changed, err := appendByte(d.bin.program[0], dir)
	if err != nil {
		return "", err
	}
	stranger, err := d.newMember(dir, joiner, append([]string{changed}, d.bin.program[1:]...))
	if err != nil {
		return "", err
	}
	if err := stranger.mustBeRefused(ctx, d.cluster.TEE, wire.NotMeasured); err != nil {
		return "", err
	}
	return fmt.Sprintf("not enrolled [%s]; the bank answers %d without a certificate and an alert to one made at home",
		wire.NotMeasured, http.StatusForbidden), d.bankIsClosed(ctx)
}

// bankIsClosed demands that the bank gives nothing to who is not in the group.
func (d *dev) bankIsClosed(ctx context.Context) error {
	holder := d.cluster.Units[bank].Address
	made, err := selfMade()
	if err != nil {
		return err
	}
	config := &tls.Config{InsecureSkipVerify: true, ServerName: d.cluster.ServerName, MinVersion: tls.VersionTLS13}
	if status, err := get(ctx, holder, config); err != nil || status != http.StatusForbidden {
		return fmt.Errorf("bank, asked without a certificate: got %d, %v, want %d", status, err, http.StatusForbidden)
	}
	config.Certificates = []tls.Certificate{made}
	if err := turnedAway(ctx, holder, config); !isAlert(err) {
		return fmt.Errorf("bank, asked with a certificate made at home: got %v, want a TLS alert", err)
	}
	return nil
}

// selfMade is a certificate that nobody vouches for.
func selfMade() (c tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// newMember prepares one more unit of a role, with a program and more flags.
func (d *dev) newMember(dir string, role int, program []string, flags ...string) (newcomer, error) {
	list, err := addresses(0, 2)
	if err != nil {
		return newcomer{}, err
	}
	u := clusterUnit{Address: list[0], Health: "http://" + list[1]}
	settings, err := commandSettings(append(d.memberArgs(role, u), flags...))
	if err != nil {
		return newcomer{}, err
	}
	log, err := os.Create(filepath.Join(dir, "unit.log"))
	if err != nil {
		return newcomer{}, err
	}
	return newcomer{launch{agent: d.bin.cohort, program: program, settings: settings, stdout: log, stderr: log}, u.Address, u.Health, log}, nil
}

// roleStory: a program has the role that its company's word gave it, and calls
// whom that role may call.
func (d *dev) roleStory(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "cohort-role-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	other, err := d.newMember(dir, insurer, d.bin.members[bank])
	if err != nil {
		return "", err
	}
	if err := other.mustBeRefused(ctx, d.cluster.TEE, wire.WrongRole); err != nil {
		return "", fmt.Errorf("the bank's program as insurer: %w", err)
	}
	calling, err := d.newMember(dir, bank, d.bin.members[bank], "--peer", jointMembers[insurer].role+"="+d.cluster.Units[insurer].Address)
	if err != nil {
		return "", err
	}
	defer calling.log.Close()
	if err := mustEndRefused(ctx, d.cluster.TEE, calling.launch, wire.NotAllowed); err != nil {
		return "", fmt.Errorf("a bank that calls the insurer: %w", err)
	}
	return fmt.Sprintf("the bank's program as insurer is refused [%s]; a bank that would call the insurer [%s]", wire.WrongRole, wire.NotAllowed), nil
}

// listenerStory: the insurer's own listener turns a bank away, whose agent would
// not have called it, and serves a joiner.
func (d *dev) listenerStory(ctx context.Context) (string, error) {
	called, status := d.cluster.Units[insurer].Address, 0
	err := d.as(ctx, bank, func(config *tls.Config) error {
		if err := turnedAway(ctx, called, config); !isAlert(err) {
			return fmt.Errorf("insurer, called by a bank: got %v, want a TLS alert", err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	err = d.as(ctx, joiner, func(config *tls.Config) (err error) { status, err = get(ctx, called, config); return err })
	return fmt.Sprintf("the insurer ends the handshake of a bank by an alert, and answers a joiner: %d", status), err
}

// as calls with the certificate and key of one more unit of a role, and checks
// nothing.
func (d *dev) as(ctx context.Context, role int, call func(*tls.Config) error) (err error) {
	dir, err := os.MkdirTemp("", "cohort-caller-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	caller, err := d.newMember(dir, role, d.bin.members[role], "--cert-dir", dir, "--cert-dir-on-disk")
	if err != nil {
		return err
	}
	defer caller.log.Close()
	p, err := caller.launch.start(ctx, d.cluster.TEE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ended(p)) }()
	if err := comesUp(ctx, caller); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return err
	}
	return call(&tls.Config{
		InsecureSkipVerify: true, ServerName: d.cluster.ServerName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
	})
}

// turnedAway is how a unit ends a connection whose certificate it refuses, which
// in TLS 1.3 it sees after the client's handshake. Nothing is sent on it, since
// what a unit has not read when it closes would take its alert away.
func turnedAway(ctx context.Context, address string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
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

// withdrawStory: after a party's withdrawal was heard, no unit gets a certificate
// and nobody opens a session; once it approves again, all goes on.
func (d *dev) withdrawStory(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-withdraw-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	parties, err := d.parties()
	if err != nil {
		return "", err
	}
	party := parties[len(parties)-1]
	before, err := d.withdraw(ctx, party)
	if err != nil {
		return "", err
	}
	late, err := d.newMember(dir, insurer, d.bin.members[insurer])
	if err != nil {
		return "", err
	}
	defer late.log.Close()
	p, err := late.launch.start(ctx, d.cluster.TEE)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, ended(p)) }()
	if _, err := d.waits(ctx, before, jointMembers[insurer].role); err != nil {
		return "", err
	}
	began := d.app.now()
	if err := d.tell(ctx, party, policy.ForApprove); err != nil {
		return "", err
	}
	if err := comesUp(ctx, late); err != nil {
		return "", err
	}
	took := since(d, began)
	// The others renew, because a withdrawal is a cut: until then no pair of a role is accepted.
	waiting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for _, err = d.statistic(ctx); err != nil && pause(waiting, 50*time.Millisecond); {
		_, err = d.statistic(ctx)
	}
	if err == nil {
		_, err = d.statisticStory(ctx)
	}
	return fmt.Sprintf("%s withdraws: no certificate, no trust [%s]; it approves again: a unit that waited is up after %v, the statistic is equal",
		party.name, wire.NoQuorum, took), err
}

// withdraw has a party withdraw, and gives the place of the log after that.
func (d *dev) withdraw(ctx context.Context, party owner) (int64, error) {
	if err := d.tell(ctx, party, policy.ForWithdraw); err != nil {
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

// comesUp waits until a unit is ready.
func comesUp(ctx context.Context, n newcomer) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := ready(ctx, n.health)
		if err == nil {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("unit %s: not ready within %v: %w: %s", n.listen, startTime, err, tail(n.log.Name()))
		}
	}
}

// ended ends a process and waits for it.
func ended(p *soft.Process) error {
	err := p.Signal(9)
	_, waited := p.Wait()
	return errors.Join(err, waited)
}
