package channelcheck

import "github.com/cohort-tee/cohort/internal/dev"

// cluster is a development cluster that its caller started.
type cluster struct{ *dev.Cluster }
