package groupcheck

import "github.com/cohort-tee/cohort/internal/dev"

// cluster is a development cluster of a group, that its caller started.
type cluster struct{ *dev.Cluster }
