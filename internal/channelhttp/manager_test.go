package channelhttp

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld/bubble"
)

// TestHostileManager: a hostile manager treats two users and three units by each behaviour
// in turn, and then becomes honest. No wrong response is accepted, no bound call is
// executed twice, and no session carries the data of two users. Where a session should
// survive, it does.
func TestHostileManager(t *testing.T) {
	table := slices.Concat(ofRequests, ofAnswers, ofHints, ofSessions, ofOpens)
	if len(table) < 25 {
		t.Errorf("got %d behaviours, want at least 25", len(table))
	}
	for _, does := range table {
		t.Run(does.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				m := newHostile(t, does, 3)
				m.story()
			})
		})
	}
}

// story runs two users under the manager's behaviour and after it.
func (m *hostile) story() {
	users := []string{"alice", "bob"}
	for _, name := range users {
		m.user(name, m.does.wants)
	}
	if m.does.open == nil && m.does.push == nil {
		m.honest.Store(true)
		for _, name := range users {
			m.mustCall(name, "safe", name+" begins")
		}
		m.honest.Store(false)
	}
	var all sync.WaitGroup
	for _, name := range users {
		for worker := range 2 {
			all.Go(func() { m.work(name, worker) })
		}
	}
	all.Wait()
	if m.does.after != nil {
		m.does.after(m)
	}
	if m.acts.Load() == 0 {
		m.T.Error("the manager never did what it is to do")
	}
	m.honest.Store(true)
	for _, name := range users {
		m.recover(name)
	}
	m.settle()
}

// kinds are the kinds of calls that users make.
var kinds = []string{"bound", "safe", "marked", "stream", "long"}

// work makes a user's calls during the behaviour.
func (m *hostile) work(user string, worker int) {
	for round := range 4 {
		for _, kind := range kinds {
			err := m.call(user, kind, fmt.Sprintf("%s %s %d-%d", user, kind, worker, round))
			may := m.does.fails == all || m.does.fails == unmarked && (kind == "bound" || kind == "stream")
			if err != nil && !may {
				m.T.Errorf("%s's %s call: %v", user, kind, err)
			}
		}
	}
}

// recover makes a user's calls once the manager is honest again: the session is there. The
// first call may still follow the manager's earlier statements.
func (m *hostile) recover(user string) {
	_ = m.call(user, "safe", user+" recovers")
	for _, kind := range kinds {
		m.mustCall(user, kind, user+" goes on, "+kind)
	}
	if got, want := m.users[user].Opens(), max(m.does.opens, 1); got > want || want < many && got < want {
		m.T.Errorf("%s: got %d sessions, want %d", user, got, want)
	}
}

func (m *hostile) mustCall(user, kind, token string) {
	m.T.Helper()
	if err := m.call(user, kind, token); err != nil {
		m.T.Errorf("%s: %v", token, err)
	}
}

// settle checks what must hold at the end of the story.
func (m *hostile) settle() {
	for _, t := range m.users {
		t.Close(context.Background())
	}
	m.app.mu.Lock()
	defer m.app.mu.Unlock()
	for tag, users := range m.app.tags {
		if len(users) != 1 {
			m.T.Errorf("session %s carried the data of %v", tag, users)
		}
	}
	for token, runs := range m.app.runs {
		if runs > 1 && isBound(token) {
			m.T.Errorf("%s: executed %d times", token, runs)
		}
	}
}
