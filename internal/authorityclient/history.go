package authorityclient

import (
	"context"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// History is the policy history as a file.
func History(ctx context.Context, c Client) ([]byte, error) {
	var all api.History
	for {
		page, err := c.History(ctx, len(all.Entries))
		if err != nil {
			return nil, err
		}
		all.Entries, all.Head = append(all.Entries, page.Entries...), page.Head
		if len(page.Entries) == 0 || len(all.Entries) > wire.MaxHistory {
			return frame.WithSchema("history", all)
		}
	}
}

// Filling are the warnings of a history that is nearly full.
type Filling struct {
	Warnings []string `json:"warnings,omitempty"`
}

// FillingOf lists the warnings of a policy history.
func FillingOf(p policy.Approved) (f Filling) {
	for _, w := range p.Filling() {
		f.Warnings = append(f.Warnings, w.String())
	}
	return f
}

// String is one line for each warning.
func (f Filling) String() string {
	var b strings.Builder
	for _, w := range f.Warnings {
		fmt.Fprintf(&b, "WARNING: %s\n", w)
	}
	return b.String()
}
