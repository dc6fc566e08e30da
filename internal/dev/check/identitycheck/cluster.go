package identitycheck

import "github.com/cohort-tee/cohort/internal/dev"

// cluster is a development cluster that a check starts.
type cluster struct{ *dev.Cluster }
