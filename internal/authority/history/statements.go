package history

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// AddStatement adds a party's statement to the history. When it returns nil, the statement is on
// disk and no certificate is issued against it. A statement that the history has already is not
// an error.
func (h *History) AddStatement(ctx context.Context, group string, signed api.SignedStatement) error {
	s, err := policy.ParseStatement(signed.Statement)
	if err != nil {
		return err
	}
	now, err := h.clock.Now()
	if err != nil {
		return err
	}
	p := h.Current().Approved.GroupByID(s.Group)
	switch {
	case p != nil && p.Group.Name != group:
		return wire.Refuse(wire.WrongGroup, "statement: group", p.Group.Name, group)
	case p != nil && p.Knows(signed.Statement):
		return nil // the party repeats its request
	}
	if !s.Withdraws && !now.Before(s.NotAfter) {
		return wire.Refuse(wire.Expired, "statement: not_after", s.NotAfter.UTC(), "after "+now.UTC().String())
	}
	if p != nil && !p.EndsApproval(s) {
		if err := h.statements.allowStatement(p, s, signed.Signature, now); err != nil {
			return err
		}
	}
	if err := h.Adopt(ctx, api.HistoryEntry{Policy: signed.Statement, Signatures: []string{signed.Signature}}); err != nil {
		return err
	}
	h.log.Info("statement added", "group", group, "party", s.Party, "withdraws", s.Withdraws, "number", s.Number)
	return nil
}

// How many statements a key may add: every unit and client of the trust domain fetches each as a
// step.
const (
	StatementBurst = 16
	StatementEvery = time.Minute
)

// allowStatement counts a statement of a party's key. It first verifies the signature, as the
// history does, so that no other key can use up the bucket. It refuses, with "rate", more
// statements than a key may add.
func (r *statementRates) allowStatement(p *policy.GroupState, s policy.Statement, signature string, at time.Time) error {
	key, err := sshsig.Verify(signature, s.Namespace(), s.Bytes())
	if err != nil {
		return err
	}
	if sshsig.KeyDigest(key) != s.Key {
		return wire.Refuse(wire.NotOwner, "statement: key", sshsig.KeyDigest(key), s.Key)
	}
	if _, err := p.Statement(s.Key, s.GroupRoot); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys[s.Key] == nil {
		if r.keys == nil {
			r.keys = map[attest.Digest]*rate.Limiter{}
		}
		r.keys[s.Key] = rate.NewLimiter(rate.Every(StatementEvery), StatementBurst)
	}
	if !r.keys[s.Key].AllowN(at, 1) {
		return wire.Refuse(wire.TooMany, "statements of one key", "more of key "+s.Key.String(), fmt.Sprint(StatementBurst, " at once, one each ", StatementEvery))
	}
	return nil
}
