package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestLease swaps a lease from nobody to one and another.
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
	wantReason(t, other.SwapLease(t.Context(), none, lease(2)), wire.Behind)
	if err := other.SwapLease(t.Context(), lease(1), lease(2)); err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.SwapLease(t.Context(), lease(1), lease(3)), wire.Behind)
	got, err := s.Lease(t.Context(), "rings")
	check(t, "lease at last", err, got, lease(2))
}

// TestCollateral keeps documents, replaces one, and forgets for room.
func TestCollateral(t *testing.T) { onBoth(t, testCollateral) }

func testCollateral(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	keep := func(name, content string, expires time.Time) {
		t.Helper()
		if err := s.KeepCollateral(t.Context(), name, []byte(content), expires); err != nil {
			t.Fatal(err)
		}
	}
	want := func(name, content string) {
		t.Helper()
		if got, err := s.Collateral(t.Context(), name); err != nil || string(got) != content {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, content)
		}
	}
	want("snp/crl.der", "")
	keep("snp/crl.der", "one", noon)
	keep("snp/crl.der", "two", noon.Add(time.Hour))
	keep("sgx/qe_identity.json", "three", noon.Add(time.Minute))
	want("snp/crl.der", "two")
	want("sgx/qe_identity.json", "three")
	blob := map[bool]string{true: "x''", false: "''"}[strings.HasPrefix(dsn, "sqlite:")]
	edit(t, dsn, fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO collateral SELECT 'n' || i, %s, %d FROM n`, maxCollateral-2, blob, noon.Add(time.Hour).Unix()))
	keep("last", "four", noon.Add(-time.Hour))
	want("last", "four")
	want("snp/crl.der", "two")
	want("sgx/qe_identity.json", "")
}

// TestServerSettings looks at what the connections of a server are asked for.
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

// TestServerLocked writes while another process's transaction is under way.
func TestServerLocked(t *testing.T) {
	dsn := testdb.Database(t)
	s, other := fresh(t, dsn), reopen(t, dsn)
	_, err := s.transact([]write{{apply: func(ctx context.Context, _ *session) error {
		wantReason(t, other.Append(ctx, head(1), step(2)), wire.StoreFailed)
		return nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Append(t.Context(), head(1), step(2)); err != nil {
		t.Errorf("after it: %v", err)
	}
	wantReason(t, s.Record(t.Context(), issuance(1)), wire.Behind)
}

// TestExamine looks at stores of both kinds, and at a server that forgets.
func TestExamine(t *testing.T) {
	server := testdb.New(t)
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
	wantReason(t, err, wire.StoreForeign)
	edit(t, dsn, `ALTER SYSTEM SET full_page_writes = off`)
	edit(t, dsn, `SELECT pg_reload_conf()`)
	for range 1000 { // the server takes its time
		if _, err = Examine(t.Context(), dsn); err != nil {
			break
		}
	}
	wantReason(t, err, wire.StoreFailed)
}
