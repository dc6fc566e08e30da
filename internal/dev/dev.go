// Package dev runs a development cluster on one machine: the development TEE, an authority, a
// manager, and three units of a program or one unit of each role of a group. All of them are
// children of this process. It restarts each of them that ends, except the TEE.
//
// The cluster is not protected from the machine that it runs on, and it prints a notice of that.
// [File] describes the running cluster to clients and to checks.
//
// Files, each using those before it: build.go, state.go, example.go, child.go,
// group.go, cluster.go, dev.go, found.go.
package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
)

const developmentNotice = "DEVELOPMENT: the soft TEE protects nothing from this machine."

// Flags are the flags of `cohort dev`.
type Flags struct {
	Dir      string
	BasePort int
	Checking bool
	Cluster  string
	Example  Example // zero for the user's own program
	KeyMode  string
	Upgrades int
	Rows     int    // size of the example's data; 0 means its default
	Task     string // name of the example's task, or "app" for the user's own program
}

// Run runs a cluster until ctx is done.
func Run(ctx context.Context, a *frame.App, f Flags, program []string) error {
	if f.Dir == "" {
		var err error
		if f.Dir, err = a.StateDir("dev"); err != nil {
			return err
		}
	}
	return WithCluster(ctx, a, f, program, func(d *Cluster) error {
		if err := a.PrintResult("dev", d.Describe(), d.banner()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			a.Notef("stopping the cluster")
			return nil
		case <-d.TEE.exited:
			return &frame.Fault{Code: frame.CodeProgram, Cause: errors.New("the development TEE ended, and the cluster with it"), Hint: "its log is " + filepath.Join(d.State, "soft.log")}
		}
	})
}

// WithCluster starts a cluster in f.Dir, calls use, and stops the cluster.
func WithCluster(ctx context.Context, a *frame.App, f Flags, program []string, use func(*Cluster) error) (err error) {
	dir, err := filepath.Abs(f.Dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	a.Notef(developmentNotice)
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	b, err := f.findBinaries(ctx, dir, program)
	if err != nil {
		return err
	}
	d, err := New(a, f, dir, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	if err := d.Start(ctx); err != nil {
		return err
	}
	return use(d)
}

// banner returns a list of the running processes and of commands to try.
func (d *Cluster) banner() string {
	c := d.Describe()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(developmentNotice + "\n")
	line("authority  %s\ngenesis    %s\ngateway    %s\nstatus     %s\ntask       %s, key mode %s", c.Authority, c.Genesis, c.Gateway, c.Manager.Status, c.Task, c.KeyMode)
	if c.Page != "" {
		line("page       %s  (checks the cluster in your browser)", c.Page)
	}
	if c.Group != "" {
		return b.String() + d.groupBanner(c)
	}
	for i, u := range c.Units {
		line("unit %d     https://%s  (pid %d, health %s)", i+1, u.Address, u.PID, u.Health)
	}
	first := c.Units[0]
	line("\ntry:\n  curl --cacert %s --connect-to ::%s https://%s/", c.Root, first.Address, c.ServerName)
	line("  kill -9 %d    # it comes back on the same address", first.PID)
	pins := fmt.Sprintf("--gateway %s --genesis %s --task %s", c.Gateway, c.Genesis, c.Task) // trust comes through the gateway
	line("  %s verify %s %s", d.Bin.Cohort, first.Address, pins)
	line("  %s request https://%s/ --session --receipt %s", d.Bin.Cohort, c.ServerName, pins)
	line("\nCtrl-C stops everything. State: %s", d.Dir)
	return b.String()
}
