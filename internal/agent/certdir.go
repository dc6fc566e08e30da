package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
	"golang.org/x/sys/unix"
)

// certDir maintains a directory with the unit's certificate and key, for programs that read
// files. Its files are links through one link to a directory, "current", which each renewal
// replaces atomically: a program that resolves "current" once and opens the files in that
// directory reads a matching pair. The zero certDir does nothing.
type certDir struct {
	path   string
	unit   *unit.Unit
	reload syscall.Signal
	log    *slog.Logger
	newer  <-chan struct{} // closed when the unit has a newer pair than the files; nil when the unit is closed
	last   string          // directory name of the newest pair
}

// Names in a certificate directory.
const (
	currentName = "current"
	nextName    = ".next"
	freshPrefix = ".pair-"
)

// certFiles are the names of the certificate chain, its key and the root.
var certFiles = []string{"tls.crt", "tls.key", "ca.crt"}

// openCertDir prepares the directory and writes the first pair.
func openCertDir(c Config) (*certDir, error) {
	d := &certDir{path: c.CertDir, unit: c.Unit, reload: c.Reload, log: c.Log}
	if d.path == "" {
		return d, nil
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, err
	}
	if err := c.checkMedium(); err != nil {
		return nil, err
	}
	if err := d.clean(); err != nil {
		return nil, err
	}
	if err := c.Unit.Ready(); err != nil {
		return nil, err
	}
	pair, err := c.Unit.Credentials()
	if err != nil {
		return nil, err
	}
	for _, name := range certFiles {
		if err := replaceLink(filepath.Join(currentName, name), filepath.Join(d.path, name)); err != nil {
			return nil, err
		}
	}
	return d, d.write(pair)
}

// checkMedium refuses a directory whose files may outlive the TEE's memory with "not-allowed",
// unless Disk is set.
func (c Config) checkMedium() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(c.CertDir, &fs); err != nil {
		return fmt.Errorf("reading the file system's type: %w", err)
	}
	if fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC && !c.Disk {
		return wire.Refuse(wire.NotAllowed, "certificate directory: file system", fmt.Sprintf("%#x", fs.Type), "tmpfs")
	}
	return nil
}

// watchUpdates writes each new pair and signals the program, until ctx is done. It then removes
// the pairs and sends the error of the removal, or nil.
func (d *certDir) watchUpdates(ctx context.Context, p *program) <-chan error {
	done := make(chan error, 1)
	if d.path == "" {
		done <- nil
		return done
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				done <- d.clean()
				return
			case <-d.newer:
				if err := d.update(p); err != nil {
					d.log.Warn("certificate directory not renewed", "cause", err)
				}
			}
		}
	}()
	return done
}

// update writes the newest pair and sends the reload signal.
func (d *certDir) update(p *program) error {
	pair, err := d.unit.Credentials()
	if errors.Is(err, wire.NotEnrolled) {
		d.newer = nil // the unit is closed
		return nil
	}
	if err == nil {
		err = d.write(pair)
	}
	if err != nil {
		return err
	}
	if d.reload == 0 {
		return nil
	}
	return p.cmd.Process.Signal(d.reload)
}

// write writes the pair to a new directory and points the link "current" to it.
func (d *certDir) write(pair unit.Credentials) error {
	d.newer = pair.Replaced
	fresh, err := os.MkdirTemp(d.path, freshPrefix)
	if err != nil {
		return err
	}
	for i, content := range [][]byte{pair.Chain, pair.Key, pair.Root} {
		if err := os.WriteFile(filepath.Join(fresh, certFiles[i]), content, 0o600); err != nil {
			return err
		}
	}
	if err := replaceLink(filepath.Base(fresh), filepath.Join(d.path, currentName)); err != nil {
		return err
	}
	older := d.last
	d.last = filepath.Base(fresh)
	return d.clean(older, d.last)
}

// replaceLink atomically makes link point to target.
func replaceLink(target, link string) error {
	next := filepath.Join(filepath.Dir(link), nextName)
	if err := os.Symlink(target, next); err != nil {
		return err
	}
	return os.Rename(next, link)
}

// clean removes leftovers of an agent that was killed, and all pairs except kept. These are the
// newest pair and the one before it, which a program may be reading.
func (d *certDir) clean(kept ...string) error {
	stale, err := filepath.Glob(filepath.Join(d.path, freshPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range append(stale, filepath.Join(d.path, nextName)) {
		if !slices.Contains(kept, filepath.Base(path)) {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}
