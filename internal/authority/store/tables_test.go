package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestLease: a lease is taken, and replaced only by a caller that has read its current row.
func TestLease(t *testing.T) { onBoth(t, testLease) }

func testLease(t *testing.T, dsn string) {
	s, other := fresh(t, dsn), reopen(t, dsn)
	none, err := s.Lease(t.Context(), "rings")
	check(t, "lease at first", err, none, Row{})
	lease := func(n int) Row {
		return Row{Key: []byte("rings"), Content: fmt.Append(nil, "holder ", n), MAC: fmt.Append(nil, "tag ", n)}
	}
	if err := s.SwapLease(t.Context(), none, lease(1)); err != nil {
		t.Fatal(err)
	}
	testworld.Refused(t, other.SwapLease(t.Context(), none, lease(2)), wire.Behind)
	if err := other.SwapLease(t.Context(), lease(1), lease(2)); err != nil {
		t.Fatal(err)
	}
	testworld.Refused(t, s.SwapLease(t.Context(), lease(1), lease(3)), wire.Behind)
	got, err := s.Lease(t.Context(), "rings")
	check(t, "lease at last", err, got, lease(2))
}

// TestGroups: of two processes that draw a secret for one roster, both use the first secret. A
// row that is not believed is replaced.
func TestGroups(t *testing.T) { onBoth(t, testGroups) }

func testGroups(t *testing.T, dsn string) {
	s, other := fresh(t, dsn), reopen(t, dsn)
	roster := wire.Digest{7}
	drawn := func(n int) Row {
		return Row{Key: roster[:], Content: fmt.Append(nil, "sealed ", n), MAC: fmt.Append(nil, "tag ", n)}
	}
	none, err := s.Group(t.Context(), roster)
	check(t, "group at first", err, none, Row{})
	all := func(Row) bool { return true }
	stands, err := s.CreateGroup(t.Context(), drawn(1), all)
	check(t, "the first", err, stands, drawn(1))
	stands, err = other.CreateGroup(t.Context(), drawn(2), all)
	check(t, "the second", err, stands, drawn(1))
	stands, err = other.CreateGroup(t.Context(), drawn(3), func(r Row) bool { return string(r.MAC) != "tag 1" })
	check(t, "in the place of a damaged row", err, stands, drawn(3))
	got, err := s.Group(t.Context(), roster)
	check(t, "group at last", err, got, drawn(3))
	none, err = s.Group(t.Context(), wire.Digest{8})
	check(t, "another roster", err, none, Row{})
}

// TestCollateral: documents are kept and replaced, and old documents of chips make room for new
// ones.
func TestCollateral(t *testing.T) { onBoth(t, testCollateral) }

func testCollateral(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	keep := func(name, content string, ofChip bool, kept time.Time) error {
		return s.PutCollateral(t.Context(), Collateral{Row{[]byte(name), []byte(content), []byte("tag of " + content)}, ofChip, kept})
	}
	want := func(name, content string) {
		t.Helper()
		expect := Row{}
		if content != "" {
			expect = Row{[]byte(name), []byte(content), []byte("tag of " + content)}
		}
		got, err := s.Collateral(t.Context(), name)
		check(t, name, err, got, expect)
	}
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	want("snp/crl.der", "")
	if err := errors.Join(keep("snp/crl.der", "one", false, noon), keep("snp/crl.der", "two", false, noon.Add(-time.Hour)),
		keep("snp/oldest.der", "three", true, noon), keep("snp/old.der", "four", true, noon.Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	want("snp/crl.der", "two")
	want("snp/oldest.der", "three")
	blob := map[bool]string{true: "x''", false: "''"}[strings.HasPrefix(dsn, "sqlite:")]
	fill := func(prefix string, n, chip int) {
		edit(t, dsn, fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO collateral SELECT '%s' || i, %s, %s, %d, %d FROM n`, n, prefix, blob, blob, chip, noon.Add(time.Hour).Unix()))
	}
	fill("chip", maxChips-2, 1)
	if err := keep("snp/last.der", "five", true, noon.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	want("snp/last.der", "five")
	want("snp/oldest.der", "")
	want("snp/old.der", "four")
	want("snp/crl.der", "two") // though it is older than the documents of chips
	fill("list", maxShared-1, 0)
	testworld.Refused(t, keep("more", "six", false, noon), wire.TooMany)
	want("more", "")
	if err := keep("snp/crl.der", "seven", false, noon); err != nil {
		t.Errorf("a new one in the place of the old: %v", err)
	}
	want("snp/crl.der", "seven")
}

// TestServerSettings checks the settings of connections to a server.
func TestServerSettings(t *testing.T) {
	dsn := testdb.Database(t)
	s := fresh(t, dsn)
	setting := func(q interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}, name string) (value string) {
		if err := q.QueryRowContext(t.Context(), "SHOW "+name).Scan(&value); err != nil {
			t.Error(err)
		}
		return value
	}
	for name, want := range map[string]string{"synchronous_commit": "on", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "5s"} {
		if got := setting(s.session, name); got != want {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
	if got := setting(s.reader, "default_transaction_read_only"); got != "on" {
		t.Errorf("readers may write: got %q, want %q", got, "on")
	}
}

// TestServerLocked: a write during another process's transaction is refused; afterwards it
// succeeds.
func TestServerLocked(t *testing.T) {
	dsn := testdb.Database(t)
	s, other := fresh(t, dsn), reopen(t, dsn)
	_, err := s.transact([]pendingWrite{{apply: func(ctx context.Context, _ *session) error {
		testworld.Refused(t, other.Append(ctx, head(1), step(2)), wire.StoreFailed)
		return nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Append(t.Context(), head(1), step(2)); err != nil {
		t.Errorf("after it: %v", err)
	}
	testworld.Refused(t, s.Record(t.Context(), issuance(1)), wire.Behind)
}

// TestExamine examines stores of both kinds, and a server whose settings can lose commits, which
// is refused.
func TestExamine(t *testing.T) {
	server := testdb.NewServer(t)
	want := func(dsn, want string) {
		t.Helper()
		if got, err := Examine(t.Context(), dsn); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	file, dsn := inFile(t), server.Database(t)
	fresh(t, file)
	fresh(t, dsn)
	want(file, "SQLite, tables of version 2")
	want(dsn, "PostgreSQL, tables of version 2")
	edit(t, dsn, `UPDATE cohort_schema SET version = 1`)
	want(dsn, "PostgreSQL, tables of version 1")
	_, err := Examine(t.Context(), server.Database(t))
	testworld.Refused(t, err, wire.StoreForeign)
	edit(t, dsn, `ALTER SYSTEM SET full_page_writes = off`)
	edit(t, dsn, `SELECT pg_reload_conf()`)
	for range 1000 { // the server reloads its settings after some time
		if _, err = Examine(t.Context(), dsn); err != nil {
			break
		}
	}
	testworld.Refused(t, err, wire.StoreFailed)
}
