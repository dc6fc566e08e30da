package groupcheck

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// TestGroupChecksFail: a check of a group fails where the group is broken.
func TestGroupChecksFail(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a cluster")
	}
	d := startJoint(t, 2000)
	open := httptest.NewUnstartedServer(http.NotFoundHandler())
	open.Config.ReadHeaderTimeout = time.Second // then it ends a connection without an alert
	open.StartTLS()
	defer open.Close()
	tests := []struct {
		name, want string
		judge      func(context.Context) error
	}{
		{"all parties approved already", "want a refusal [quorum]", func(ctx context.Context) error {
			_, err := d.quorum(ctx)
			return err
		}},
		{"other tables", "as on the pooled tables", func(ctx context.Context) error {
			defer func(tables string) { d.Bin.Tables = tables }(d.Bin.Tables)
			d.Bin.Tables = filepath.Join(d.Dir, "tables-300")
			if err := d.Bin.MakeTables(ctx); err != nil {
				return err
			}
			_, err := d.sameStatistic(ctx)
			return err
		}},
		{"a bank that answers anybody", "asked without a certificate: got 404", func(ctx context.Context) error {
			defer func(address string) { d.Doc.Units[d.holder()].Address = address }(d.Doc.Units[d.holder()].Address)
			d.Doc.Units[d.holder()].Address = open.Listener.Addr().String()
			return d.holderIsClosed(ctx)
		}},
		{"an insurer that answers anybody", "want a TLS alert", func(ctx context.Context) error {
			defer func(address string) { d.Doc.Units[d.other()].Address = address }(d.Doc.Units[d.other()].Address)
			d.Doc.Units[d.other()].Address = open.Listener.Addr().String()
			_, err := d.listener(ctx)
			return err
		}},
		{"a certificate after the withdrawal", "without the quorum", func(ctx context.Context) error {
			parties, err := d.Parties()
			if err != nil {
				return err
			}
			if _, err := d.withdraw(ctx, parties[0]); err != nil {
				return err
			}
			_, err = d.waits(ctx, 0, "bank") // from before it
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.judge(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// startJoint is a cluster of the example of three companies, which all approve,
// with tables of so many rows.
func startJoint(t testing.TB, rows int) cluster {
	t.Helper()
	dir := t.TempDir()
	cohort, err := dev.GoBuild(t.Context(), "./cmd/cohort", filepath.Join(dir, "cohort"))
	if err != nil {
		t.Fatal(err)
	}
	example, err := dev.ReadExample("../../../../examples/jointrisk/dev.toml")
	if err != nil {
		t.Fatal(err)
	}
	f := dev.Flags{Example: example, Task: example.MainTask(), KeyMode: string(policyfile.Shared), Rows: rows}
	b, err := f.FindPrograms(t.Context(), dev.Binaries{Cohort: cohort}, cohort, dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dev.New(clitest.App(io.Discard), f, dir, b)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.Context(), which ends before the cleanup that stops the cluster.
	if err := d.Start(context.Background()); err != nil {
		t.Fatal(errors.Join(err, d.Stop()))
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	return cluster{d}
}
