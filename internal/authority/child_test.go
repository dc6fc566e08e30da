package authority

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	osexec "os/exec"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/failpoint"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// childVariable names the environment variable with a child's [childWish].
const childVariable = "AUTHORITY_TEST_CHILD"

// childWish is the input of a child, a process that serves an authority. Its chip is that of
// sameChip.
type childWish struct {
	DSN  string
	Wall time.Time
}

// sameChip returns the same vendor and chip in every process.
func sameChip(t *testing.T) (vendor *attesttest.Vendor, chip *attesttest.Chip) {
	t.Run("chip", func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, 1)
		vendor = attesttest.NewVendor()
		chip = vendor.Chip()
	})
	return vendor, chip
}

// TestChild runs the child process. Without childVariable it does nothing.
func TestChild(t *testing.T) {
	var wish childWish
	if text := os.Getenv(childVariable); text == "" {
		return
	} else if err := json.Unmarshal([]byte(text), &wish); err != nil {
		t.Fatal(err)
	}
	points := failpoint.FromEnv()
	_, chip := sameChip(t)
	dsn := wish.DSN
	if strings.HasPrefix(dsn, "sqlite:") {
		points.SQLite()
	} else {
		dsn = points.Server(dsn)
	}
	listener := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	db := testworld.Must(store.Open(t.Context(), dsn))
	tee := chip.Attester(attesttest.Measure("authority"))
	start := time.Now()
	a := testworld.Must(Open(t.Context(), Config{
		Store: db, Attester: tee, Sealer: points.Sealer(tee), Verifier: attesttest.Verifier(),
		Clock:  func() (time.Time, time.Duration) { d := time.Since(start); return wish.Wall.Add(d), d },
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Limits: admission.Limits{PerAddress: 10_000, Total: 10_000},
	}))
	fmt.Println("https://" + listener.Addr().String())
	ctx, stop := context.WithCancel(t.Context())
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	if err := a.Serve(ctx, points.Listener(listener)); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// child is a running child process.
type child struct {
	*api.Authority
	points string // file with the points that it passed
	stop   func() error
}

// startChild starts a child that dies at its n-th point (0: none), and connects to it with
// config. If the child has died already, the result has no client.
func (w *world) startChild(n int, config *tls.Config) *child {
	w.T.Helper()
	dir := testworld.Must(os.MkdirTemp("", "a"))
	w.T.Cleanup(func() { os.RemoveAll(dir) })
	wall, _ := w.clock.Read()
	c := &child{points: dir + "/points"}
	cmd := osexec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), failpoint.KillEnv(n, c.points)...)
	cmd.Env = append(cmd.Env, "TMPDIR="+dir, childVariable+"="+string(testworld.Must(json.Marshal(childWish{w.dsn, wall}))))
	cmd.Stderr = w
	in, out := testworld.Must(cmd.StdinPipe()), testworld.Must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		w.T.Fatal(err)
	}
	lines := bufio.NewReader(out)
	c.stop = func() error {
		in.Close()
		io.Copy(io.Discard, lines)
		return cmd.Wait()
	}
	if line, err := lines.ReadString('\n'); err == nil && strings.HasPrefix(line, "https://") {
		c.Authority = testworld.Must(api.NewAuthority(strings.TrimSpace(line), config))
		w.T.Cleanup(c.Close)
	}
	return c
}

// killed ends the child, and reports whether it had been killed before.
func (c *child) killed() bool {
	err := c.stop()
	return err != nil && strings.Contains(err.Error(), "signal: killed")
}
