// Command cohort is everything Cohort has on a command line: authority, agent,
// client, policy, and a whole development cluster. See `cohort --help`.
package main

import (
	"os"

	"github.com/cohort-tee/cohort/internal/cli"
)

func main() { os.Exit(cli.Main()) }
