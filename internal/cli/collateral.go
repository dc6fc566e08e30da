package cli

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/spf13/cobra"
)

// collateralFlags say where an authority, or the owner who judges one, finds what
// vendors say beside evidence.
type collateralFlags struct{ dir, amd, intel, intelRoot, nvidia string }

func (f *collateralFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "collateral-dir", "", "directory of vendors' documents, asked first; for closed networks")
	flags.StringVar(&f.amd, "collateral-amd", collateral.AMD, "AMD's service or a mirror of it; empty asks nobody")
	flags.StringVar(&f.intel, "collateral-intel", collateral.Intel, "Intel's service or a mirror of it; empty asks nobody")
	flags.StringVar(&f.intelRoot, "collateral-intel-root", collateral.IntelRoot, "where Intel's root list is, or a mirror; empty asks nobody")
	flags.StringVar(&f.nvidia, "collateral-nvidia", collateral.NVIDIA, "where NVIDIA's lists are, or a mirror; empty asks nobody")
}

// open finds documents there, and keeps them in an authority's store, where there
// is one.
func (f collateralFlags) open(db *store.Store, log *slog.Logger, now func() time.Time) *collateral.Collateral {
	c := collateral.Config{AMD: f.amd, Intel: f.intel, IntelRoot: f.intelRoot, NVIDIA: f.nvidia, Clock: now}
	if db != nil {
		c.Cache = kept{db, log}
	}
	if f.dir != "" {
		c.Mirror = os.DirFS(f.dir)
	}
	return collateral.New(c)
}

// kept keeps documents in the store, as well as that can: what fails is fetched.
type kept struct {
	db  *store.Store
	log *slog.Logger
}

// Load implements [collateral.Cache].
func (k kept) Load(ctx context.Context, name string) (d collateral.Document) {
	content, err := k.db.Collateral(ctx, name)
	if err == nil && content != nil {
		err = json.Unmarshal(content, &d)
	}
	if err != nil {
		k.log.Warn("loading collateral", "name", name, "error", err)
		return collateral.Document{}
	}
	return d
}

// Store implements [collateral.Cache].
func (k kept) Store(ctx context.Context, name string, d collateral.Document) {
	content, err := json.Marshal(d)
	if err == nil {
		err = k.db.KeepCollateral(ctx, name, content, d.Expires)
	}
	if err != nil {
		k.log.Warn("keeping collateral", "name", name, "error", err)
	}
}
