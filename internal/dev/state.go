package dev

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
)

// Description describes a running cluster to its clients and to checks. It is the content of
// dev.json.
type Description struct {
	Schema    string `json:"schema"` // "cohort/dev/v1"
	Genesis   string `json:"genesis"`
	Authority string `json:"authority"`
	Gateway   string `json:"gateway"`
	Manager   struct {
		PID  int    `json:"pid"`
		Data string `json:"data"` // data directory
		Bus  string `json:"bus"`  // host:port where units connect
		// Status is the URL of the page that shows the cluster.
		Status string `json:"status"`
	} `json:"manager"`
	service
	Tasks   []service `json:"tasks"`
	Group   string    `json:"group,omitempty"` // group of the units, one unit for each role
	KeyMode string    `json:"key_mode"`
	TEE     string    `json:"tee"`   // socket of the soft daemon
	Agent   string    `json:"agent"` // the measured cohort
	// Page is the URL of a page for browsers, if the example has one.
	Page string `json:"page,omitempty"`
	// Program is the measured program with its arguments, with which it can be launched again.
	Program []string `json:"program"`
	// Stream is a request with a streaming response, if the example has one.
	Stream *Stream `json:"stream,omitempty"`
}

// service is one task of a cluster with its units.
type service struct {
	Task       string `json:"task"`
	ServerName string `json:"server_name"`
	Root       string `json:"root"` // PEM file
	Units      []Unit `json:"units"`
}

// Unit is a running unit. PID is the process with its TLS listener.
type Unit struct {
	Address string `json:"address"`
	PID     int    `json:"pid"`
	Health  string `json:"health"` // URL of its health pages
}

// ClientTLS returns the TLS configuration of an ordinary Go client, which has only the root file
// and the server name.
func (c Description) ClientTLS() (*tls.Config, error) {
	roots, err := frame.ReadPool(c.Root)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: roots, ServerName: c.ServerName, MinVersion: tls.VersionTLS13}, nil
}

const (
	devSchema = "cohort/dev/v1"
	File      = "dev.json"
	MaxDev    = 1 << 20
)

// ReadCluster reads a dev.json.
func ReadCluster(path string) (Description, error) {
	var c Description
	b, err := frame.ReadFile(path, MaxDev)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil || c.Schema != devSchema || len(c.Units) == 0 {
		return c, frame.Usage("%s: want a description of schema %s with units", path, devSchema)
	}
	return c, nil
}

// writeCluster atomically replaces dev.json in dir.
func writeCluster(dir string, c Description) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", File, err)
	}
	return frame.ReplaceFile(filepath.Join(dir, File), append(b, '\n'))
}

// lockDir locks a directory for this process until the returned file is closed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(&frame.Fault{Code: frame.CodeInUse, Cause: fmt.Errorf("locking %s: another `cohort dev` runs there", dir), Hint: ""}, f.Close())
	}
	return f, nil
}

// Owners returns the keys of the three owners of a development policy.
func Owners(dir string) ([]sshkey.Pair, error) {
	return sshkey.Pairs(dir, "owner-1", "owner-2", "owner-3")
}

// Addresses returns n loopback addresses with free ports: the ports from base on, or any if base
// is 0.
func Addresses(base, n int) ([]string, error) {
	list := make([]string, n)
	for i := range list {
		port := 0
		if base > 0 {
			port = base + i
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return nil, fmt.Errorf("trying port %d: %w", port, err)
		}
		list[i] = l.Addr().String()
		defer l.Close() // all stay open until the last is found, so that no two are equal
	}
	return list, nil
}
