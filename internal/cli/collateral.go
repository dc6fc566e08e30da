package cli

import (
	"os"
	"time"

	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/spf13/cobra"
)

// collateralFlags say where an authority, or the owner who judges one, finds what
// vendors say beside evidence.
type collateralFlags struct{ dir, amd, intel, intelRoot, nvidia, aws string }

func (f *collateralFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "collateral-dir", "", "directory of vendors' documents, asked first; for closed networks")
	flags.StringVar(&f.amd, "collateral-amd", collateral.AMD, "AMD's service or a mirror of it; empty asks nobody")
	flags.StringVar(&f.intel, "collateral-intel", collateral.Intel, "Intel's service or a mirror of it; empty asks nobody")
	flags.StringVar(&f.intelRoot, "collateral-intel-root", collateral.IntelRoot, "where Intel's root list is, or a mirror; empty asks nobody")
	flags.StringVar(&f.aws, "collateral-aws", collateral.AWS, `where AWS's lists are: "aws" as its certificates say, or a mirror; empty asks nobody`)
	flags.StringVar(&f.nvidia, "collateral-nvidia", collateral.NVIDIA, "where NVIDIA's lists are, or a mirror; empty asks nobody")
}

// open finds documents there, and keeps them in a cache, where there is one.
func (f collateralFlags) open(kept collateral.Cache, now func() time.Time) *collateral.Collateral {
	c := collateral.Config{AMD: f.amd, Intel: f.intel, IntelRoot: f.intelRoot, NVIDIA: f.nvidia, AWS: f.aws, Clock: now, Cache: kept}
	if f.dir != "" {
		c.Mirror = os.DirFS(f.dir)
	}
	return collateral.New(c)
}
