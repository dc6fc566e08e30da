package channelcheck

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/retry"
)

// mostMemory is the maximum resident memory of a unit in MiB, for any message of its manager.
// One of the messages below claims a size of 2 GB.
const mostMemory = 400

// attacks returns messages of a hostile manager, all of which violate the protocol.
func attacks() [][]byte {
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	nats := func(size string) []byte {
		head := "INFO {\"server_id\":\"x\",\"proto\":1,\"max_payload\":131072,\"headers\":true}\r\nMSG cohort.push.x 1 " + size + "\r\n"
		return append([]byte(head), make([]byte, 8<<20)...)
	}
	return [][]byte{
		nats("9223372036854775807"), nats("2000000000"), noise, make([]byte, 1<<20),
		{0, 0, 1}, append([]byte{0x1f, 0xff, 3}, noise[:8190]...), append([]byte{0xff, 0xff, 3}, noise...),
		{0, 1, 99}, {0, 2, 1, 0}, append([]byte{0, 17, 2}, bytes.Repeat([]byte{0xff}, 16)...), {0, 4, 7, 0, 1, 2},
		bytes.Repeat(append([]byte{0x0f, 0xff, 3}, noise[:4094]...), 2000), // frames of sealed sessions with random bytes
	}
}

// hostile is a manager that attacks every connection of a unit, each with the next attack.
type hostile struct {
	listener net.Listener
	pem      []byte
	sent     atomic.Int64 // number of attacks
	serving  sync.WaitGroup
}

func newHostile() (*hostile, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	h := &hostile{pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	h.listener, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{bus.Protocol}, ClientAuth: tls.RequestClientCert,
	})
	if err != nil {
		return nil, err
	}
	h.serving.Go(h.serve)
	return h, nil
}

func (h *hostile) serve() {
	all := attacks()
	for n := 0; ; n++ {
		conn, err := h.listener.Accept()
		if err != nil {
			return
		}
		h.serving.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			if conn.(*tls.Conn).Handshake() == nil {
				_, _ = conn.Write(all[n%len(all)])
				_, _ = conn.Read(make([]byte, 64<<10)) // until the unit closes the connection
				h.sent.Add(1)
			}
		})
	}
}

func (h *hostile) close() {
	h.listener.Close()
	h.serving.Wait()
}

// HostileManager checks that a manager that sends invalid sizes and frames can neither crash a
// unit nor fill its memory. The unit continues, and shares sessions through its other manager.
func HostileManager(ctx context.Context, c check.Checker) (_ string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "cohort-hostile-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	h, err := newHostile()
	if err != nil {
		return "", err
	}
	defer h.close()
	own, err := os.ReadFile(selfsigned.CAFile(c.Cluster.Manager.Data))
	if err != nil {
		return "", err
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, append(own, h.pem...), 0o600); err != nil {
		return "", err
	}
	before, err := authorityclient.Gateway{URL: c.Cluster.Gateway}.Ready(ctx)
	if err != nil {
		return "", err
	}
	urls := "tls://" + h.listener.Addr().String() + ",tls://" + c.Cluster.Manager.Bus
	u, err := c.NewUnit(dir, c.Cluster.Authority, c.Cluster.Program[:1:1], "--manager", urls, "--manager-ca", ca)
	if err != nil {
		return "", err
	}
	defer u.Log.Close()
	p, err := u.Launch.Start(ctx, c.Cluster.TEE)
	if err != nil {
		return "", err
	}
	ended := make(chan soft.Exit, 1)
	go func() { exit, _ := p.Wait(); ended <- exit }()
	defer func() { _ = p.Signal(syscall.SIGTERM); <-ended }()
	if err := h.attacked(ctx, u, ended); err != nil {
		return "", err
	}
	memory, err := unharmed(ctx, c, u, p.PID, before)
	return fmt.Sprintf("%d attacks on one unit; it serves, took at most %d MiB and is known to its other manager", h.sent.Load(), memory), err
}

// attacked waits until a unit has received every attack.
func (h *hostile) attacked(ctx context.Context, u check.Newcomer, ended chan soft.Exit) error {
	want := int64(len(attacks()))
	for h.sent.Load() < want {
		select {
		case exit := <-ended:
			ended <- exit // for the deferred function that waits for the unit
			return fmt.Errorf("after %d attacks the unit ended, %v: %s", h.sent.Load(), exit, dev.LogTail(u.Log.Name()))
		default:
		}
		if retry.Sleep(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("got %d attacks on the unit, want %d: %s", h.sent.Load(), want, dev.LogTail(u.Log.Name()))
		}
	}
	return nil
}

// unharmed returns an error unless an attacked unit serves requests, used at most mostMemory,
// and was added to the gateway's units. It returns the unit's peak memory in MiB.
func unharmed(ctx context.Context, c check.Checker, u check.Newcomer, pid, before int) (memory int, err error) {
	config, err := c.Plain()
	if err != nil {
		return 0, err
	}
	status, err := check.GetStatus(ctx, u.Listen, config)
	if err == nil && status >= http.StatusInternalServerError {
		err = fmt.Errorf("got status %d, want a response", status)
	}
	if err != nil {
		return 0, fmt.Errorf("the attacked unit: %w", err)
	}
	if memory, err = peakMemory(pid); err != nil {
		return 0, err
	}
	if memory > mostMemory {
		return memory, fmt.Errorf("the attacked unit took %d MiB, want at most %d", memory, mostMemory)
	}
	for {
		units, err := authorityclient.Gateway{URL: c.Cluster.Gateway}.Ready(ctx)
		if err == nil && units > before {
			return memory, nil
		}
		if retry.Sleep(ctx, 100*time.Millisecond) != nil {
			return memory, errors.Join(fmt.Errorf("units at the other manager: got %d, want more than %d", units, before), err)
		}
	}
}

// peakMemory returns the peak resident memory of a process in MiB.
func peakMemory(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.Atoi(f[1])
			return kib >> 10, err
		}
	}
	return 0, errors.New("the process has no memory")
}
