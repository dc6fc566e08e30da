// Package check is the framework for checks of a development cluster from outside: cases and
// their outcomes, and helpers for sessions, a tampering proxy, a proxy that can be cut, units
// that must be refused, and owners who adopt a policy.
//
// A check knows only the cluster's description. Production code does not import this package.
//
// Files, each using those before it: cable.go, check.go, load.go, owners.go,
// session.go, tamperingproxy.go, unit.go.
package check

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
)

// StepTime limits one step of a check.
const StepTime = 10 * time.Second

// Checker checks a cluster from outside, like any client. It knows only the cluster's
// description.
type Checker struct {
	App     *frame.App
	Cluster dev.Description
	// Live returns the current description: process ids change after restarts.
	Live func() dev.Description
}

// ForCluster returns a Checker for a cluster that this process runs.
func ForCluster(d *dev.Cluster) Checker { return Checker{d.App, d.Describe(), d.Describe} }

// UnitPID returns the current process id of a unit.
func (c Checker) UnitPID(u dev.Unit) int {
	for _, now := range c.Live().Units {
		if now.Health == u.Health {
			return now.PID
		}
	}
	return u.PID
}

// Case is one check. Its detail describes the observed behaviour.
type Case struct {
	Name string
	Run  func(context.Context, Checker) (detail string, err error)
}

// Outcome is the result of one check.
type Outcome struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Run runs checks and prints their outcomes, in text one line for each. It returns an error
// unless all pass.
func (c Checker) Run(ctx context.Context, cases []Case) error {
	var all struct {
		Outcomes []Outcome `json:"checks"`
	}
	failed := 0
	for _, s := range cases {
		o := Outcome{Name: s.Name, OK: true}
		var err error
		if o.Detail, err = s.Run(ctx, c); err != nil {
			o.OK, o.Detail = false, frame.OneLine(err.Error())
			failed++
		}
		all.Outcomes = append(all.Outcomes, o)
		if c.App.Output == "text" {
			if err := c.App.PrintResult("check", o, o.FormatLine()); err != nil {
				return err
			}
		}
	}
	if c.App.Output == "json" {
		if err := c.App.PrintResult("check", all, ""); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &frame.Fault{Code: frame.CodeCheckFailed, Cause: fmt.Errorf("checking the cluster: %d of %d checks failed", failed, len(cases))}
	}
	return nil
}

// FormatLine returns the outcome as one line of text.
func (o Outcome) FormatLine() string {
	word := "ok"
	if !o.OK {
		word = "FAIL"
	}
	return fmt.Sprintf("%s %s %s\n", word, o.Name, o.Detail)
}

// Plain returns the TLS configuration of an ordinary Go client, which has only the root file and
// the server name.
func (c Checker) Plain() (*tls.Config, error) { return c.Cluster.ClientTLS() }

// AnyReplica checks that a client with the root file and the server name receives a response
// from each unit.
func (c Checker) AnyReplica(ctx context.Context) (string, error) {
	config, err := c.Plain()
	if err != nil {
		return "", err
	}
	statuses := make([]string, len(c.Cluster.Units))
	for i, u := range c.Cluster.Units {
		status, err := GetStatus(ctx, u.Address, config)
		if err != nil {
			return "", err
		}
		if status >= http.StatusInternalServerError {
			return "", fmt.Errorf("unit %s: got status %d, want a response of the program", u.Address, status)
		}
		statuses[i] = fmt.Sprint(status)
	}
	return "GET / served by each unit: " + strings.Join(statuses, " "), nil
}

// GetStatus sends a request for "/" to one unit over a new connection and returns the status.
func GetStatus(ctx context.Context, address string, config *tls.Config) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, StepTime)
	defer cancel()
	transport := &http.Transport{
		TLSClientConfig:   config,
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+config.ServerName+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return 0, fmt.Errorf("unit %s: %w", address, err)
	}
	return resp.StatusCode, resp.Body.Close()
}
