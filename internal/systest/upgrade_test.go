package systest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// upgrades is a task that goes through releases, each of which continues the previous one,
// by rolling upgrades: a unit starts, and one of the former release stops.
type upgrades struct {
	*Cluster
	t       *testing.T
	service *service
	release int
	units   []*Replica
}

func (u *upgrades) program(release int) string { return fmt.Sprint("scoring ", release) }

// approve puts the next release beside the running one, and retires the release before
// that, in one policy. Removing that release would end the sessions that it opened.
func (u *upgrades) approve() {
	u.t.Helper()
	now, next := u.release, u.release+1
	table := func(release int) string { return fmt.Sprintf("[task.scoring.release.\"%d\"]\n", release) }
	values := func(release int) string { return fmt.Sprintf("reference = [ %s ]\n", Reference(u.program(release))) }
	edits := []string{table(now), table(next) + values(next) + fmt.Sprintf("continues = \"%d\"\n", now) + table(now)}
	if now > 1 {
		edits = append(edits, table(now-1), table(now-1)+"retired = true\n")
	}
	push(u.t, u.Cluster, u.NextPolicy(edits...))
	u.release = next
}

// roll replaces every unit by a unit of the approved release.
func (u *upgrades) roll() {
	u.t.Helper()
	for i, old := range u.units {
		u.units[i] = u.Start("scoring", u.program(u.release), u.service)
		attended(u.t, u.units[i])
		old.Stop()
	}
}

// pinned opens a channel to exactly the running release.
func (u *upgrades) pinned() *client.Channel {
	u.t.Helper()
	pins := u.TrustConfig("")
	for _, id := range trust(u.t, u.Cluster).Identities() {
		if id.Release == fmt.Sprint(u.release) {
			pins.ID = id.ID
		}
	}
	config := u.OpenConfig("scoring")
	var err error
	if config.Trust, err = client.FetchTrust(u.t.Context(), pins); err != nil {
		u.t.Fatal(err)
	}
	return u.OpenChannel(config)
}

// gone requires that no unit serves a channel to a former release.
func (u *upgrades) gone(ch *client.Channel) {
	u.t.Helper()
	mark := fmt.Sprint("pinned before ", u.release)
	ctx, cancel := context.WithTimeout(u.t.Context(), 10*time.Second)
	defer cancel()
	_, err := call(ctx, ch, http.MethodGet, mark, "")
	u.service.mu.Lock()
	defer u.service.mu.Unlock()
	if err == nil || u.service.seen[mark] > 0 {
		u.t.Errorf("%s: got %v, executed %d times, want nobody to serve it", mark, err, u.service.seen[mark])
	}
}

// TestRollingUpgrades: under load, each release replaces the previous one. Sessions opened
// by the task's name move to the next release without another handshake, even a session
// that is idle throughout; a session pinned to code never moves.
func TestRollingUpgrades(t *testing.T) {
	waits(t)
	app := &service{seen: map[string]int{}}
	s := &storm{executed: app.executed, rate: 60, length: 10 * time.Second}
	count, sessions := 2, 10
	if full() {
		s.rate, s.length, count, sessions = 500, 240*time.Second, 20, 50
	}
	c, units := shared(t, 3, time.Hour, app)
	u := &upgrades{Cluster: c, t: t, service: app, release: 1, units: units}
	s.channels = channels(c, sessions)
	idle := c.OpenChannel(c.OpenConfig("scoring"))
	var load sync.WaitGroup
	var out *tally
	load.Go(func() { out = s.run(t) })
	begin, done := time.Now(), 0
	for range count {
		strict := u.pinned()
		u.approve()
		u.roll()
		u.gone(strict)
		if time.Since(begin) < s.length {
			done++
		}
	}
	load.Wait()
	t.Logf("%d of %d upgrades under load, in %v", done, count, time.Since(begin).Round(time.Second))
	s.judge(t, out)
	if _, err := call(t.Context(), idle, http.MethodGet, "idle", ""); err != nil {
		t.Errorf("the session that was idle: %v", err)
	}
	for i, ch := range append(s.channels, idle) {
		if got := ch.Opens(); got != 1 {
			t.Errorf("channel %d opened %d sessions, want one that moves along", i, got)
		}
	}
}

// TestUpgradeInHaste: units end as soon as they have the sessions of the previous release.
// They seal those sessions again while they end; otherwise the release after theirs could
// open none.
func TestUpgradeInHaste(t *testing.T) {
	t.Parallel()
	app := &service{seen: map[string]int{}}
	c, units := shared(t, 1, time.Hour, app)
	u := &upgrades{Cluster: c, t: t, service: app, release: 1}
	list := channels(c, 20)
	for range 3 {
		units[0].Stop()
		u.approve()
		units[0] = c.Start("scoring", u.program(u.release), app)
		testworld.Within(t, 10*time.Second, "the sessions to arrive", func() bool { return units[0].Unit.Stats().Sessions == len(list) })
	}
	attended(t, units...)
	for i, ch := range list {
		if _, err := call(t.Context(), ch, http.MethodGet, fmt.Sprint("channel ", i), ""); err != nil || ch.Opens() != 1 {
			t.Errorf("channel %d: got %v, %d sessions, want one that moves along", i, err, ch.Opens())
		}
	}
}

// lastDoor is a listener that records when it was closed.
type lastDoor struct {
	net.Listener
	once   sync.Once
	closed time.Time
}

func (l *lastDoor) Close() error {
	l.once.Do(func() { l.closed = time.Now() })
	return l.Listener.Close()
}

// TestUnitLingers: a unit that ends keeps accepting connections until the manager has had
// time to learn of it and inform clients.
func TestUnitLingers(t *testing.T) {
	t.Parallel()
	c := New(t, scoring(time.Hour))
	c.StartManager()
	door := &lastDoor{Listener: c.listen()}
	r := c.replica(c.UnitConfig("scoring", "scoring 1"), door, hello("unit"))
	attended(t, r)
	begin := time.Now()
	r.Stop()
	if got := door.closed.Sub(begin); got < 200*time.Millisecond {
		t.Errorf("closed its door after %v, want at least 200ms", got)
	}
}
