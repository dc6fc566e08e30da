package frame

import (
	"os"
	"time"

	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/spf13/cobra"
)

// CollateralFlags name the sources where an authority, or the owner who checks one, finds what
// vendors publish beside evidence.
type CollateralFlags struct {
	dir     string
	sources map[string]*string // URL by source
}

// Register adds the flags to a command.
func (f *CollateralFlags) Register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "collateral-dir", "", "directory of vendors' documents, asked first; for closed networks")
	f.sources = map[string]*string{}
	for _, s := range platforms.Supported().Sources() {
		f.sources[s.Name] = flags.String("collateral-"+s.Name, s.Base, s.Usage+"; empty asks none")
	}
}

// Open finds documents there, and keeps them in a cache, where there is one.
func (f CollateralFlags) Open(kept collateral.Cache, now func() time.Time) *collateral.Collateral {
	c := collateral.Config{Documents: platforms.Supported().Documents, Sources: map[string]string{}, Clock: now, Cache: kept}
	for name, base := range f.sources {
		c.Sources[name] = *base
	}
	if f.dir != "" {
		c.Mirror = os.DirFS(f.dir)
	}
	return collateral.New(c)
}
